"""Data sets in COCO's formats: objects, panoptic segments."""
