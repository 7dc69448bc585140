"""Numbers that say how good predictions are."""
