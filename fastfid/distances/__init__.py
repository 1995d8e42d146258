"""Distances of feature sets, and the moments they are made of."""
