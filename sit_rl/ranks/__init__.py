"""Processes and threads of a run."""
