"""What the commands print that is not an evaluation."""
