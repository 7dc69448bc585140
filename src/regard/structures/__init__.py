"""Data structures that the whole package uses: image batches, model outputs, boxes, categories, segments."""
