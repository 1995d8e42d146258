"""Generators: SiT, in the official checkpoint's key layout."""
