"""Exact change of a Fréchet distance for many candidate swaps at once."""
