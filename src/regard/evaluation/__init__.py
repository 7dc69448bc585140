"""A model over a data set."""
