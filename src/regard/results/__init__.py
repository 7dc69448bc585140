"""What `regard.predict` returns, and how a model output becomes it."""
