"""`python -m benchmarks.quality`: points lost at equal size, ours and every peer on the same files."""
