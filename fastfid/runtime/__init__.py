"""Devices, processes, memory and files: what all rooms above need."""
