"""Data sets of images with one class each, in folders, lists or tar files."""
