"""Data structures that all rooms share: batches, outputs, boxes, categories, segments."""
