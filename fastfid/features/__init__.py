"""Images to features: networks, their preprocessing, extraction and its cache."""
