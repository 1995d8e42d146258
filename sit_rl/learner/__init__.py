"""The model in training: optimiser, checkpoints, guards."""
