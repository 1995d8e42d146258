"""Studies: a grid of configurations and seeds, run in parallel and compared in one table and one figure."""
