"""Weights: other people's files and ours, from a path or by name."""
