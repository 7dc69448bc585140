"""Comparisons as commands: `regard study NAME`. One file, one study."""
