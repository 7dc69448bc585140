"""Batches: the samples of one training or evaluation step."""
