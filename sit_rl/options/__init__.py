"""The groups of a run's configuration, one file per group, and the field that they are made of."""
