"""A recipe becomes a run: `regard.train`."""
