"""Data sets in COCO's formats: objects and panoptic segments."""
