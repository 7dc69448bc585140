"""Data sets: files, checks, samples, transforms and batches."""
