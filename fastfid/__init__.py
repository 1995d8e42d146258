"""fastfid: exact Fréchet distances of many sample swaps at once, and the distribution metrics around them."""

__version__ = "0.1.0"
