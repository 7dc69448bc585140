"""Scores of predictions: COCO AP, panoptic quality, accuracy."""
