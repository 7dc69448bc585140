"""Training runs as functions: settings by name."""
