"""Transforms of samples: augmentation for training, resizing for evaluation."""
