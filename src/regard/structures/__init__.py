"""What everything is made of: batches, outputs, boxes, categories, segments."""
