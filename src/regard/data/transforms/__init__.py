"""From samples of any size to what a model is given."""
