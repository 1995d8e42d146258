"""Matrix square roots, their traces, and quadrature nodes."""
