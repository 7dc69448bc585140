"""`regard.predict`, and `regard predict` for files."""
