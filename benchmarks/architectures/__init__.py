"""Architectures written out and exported for the coverage benchmark; see `__main__`."""
