"""Images from folders, zip and npz files, arrays and streams, as uint8 batches."""
