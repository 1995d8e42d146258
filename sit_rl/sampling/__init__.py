"""Samplers: from noise to images along a velocity field."""
