"""HTML pages: the design, the charts and the pictures that all reports share."""
