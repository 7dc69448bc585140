"""Samples of one step, side by side."""
