"""Errors that a command line must know without loading torch."""


class OtherRankFailed(ValueError):
    """Raised on ranks above 0 in place of an error that rank 0 reports."""
