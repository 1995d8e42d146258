"""Files that appear whole or not at all, and checks of given paths."""
