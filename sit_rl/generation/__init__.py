"""Files of generated samples."""
