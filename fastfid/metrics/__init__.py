"""Metric classes for training loops, with torchmetrics' names and arguments."""
