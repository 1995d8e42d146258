"""Atomic files, tensor files, and checks of given paths."""
