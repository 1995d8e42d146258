"""Set rewards: how good a set of generated images is as a whole, and what each image contributes; one file each."""
