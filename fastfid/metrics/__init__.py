"""Metric classes for training loops: update, compute and reset, with torchmetrics' names and arguments."""
