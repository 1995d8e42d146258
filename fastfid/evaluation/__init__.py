"""Evaluate image sets: open both sides, compute every score with its interval, report it."""
