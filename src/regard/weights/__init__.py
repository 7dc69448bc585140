"""Load weights from a path or by name: our own files and those of other projects."""
