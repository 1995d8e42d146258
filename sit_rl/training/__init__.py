"""The training loop, its state, and the evaluation on held-out images."""
