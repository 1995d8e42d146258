"""Pretraining of generators and feature networks, of the embedded images and of a user's own."""
