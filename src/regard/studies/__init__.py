"""Comparisons as commands: `regard study NAME`, one per file."""
