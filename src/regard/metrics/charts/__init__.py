"""Charts of those numbers."""
