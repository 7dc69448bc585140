"""Teachers, and their logits stored on disk."""
