"""Data sets that need no download: generated shapes, handwritten digits."""
