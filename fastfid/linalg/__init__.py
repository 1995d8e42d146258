"""Matrix square roots and their traces."""
