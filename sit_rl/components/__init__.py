"""What a run is built from: model, networks, real images, and their checks."""
