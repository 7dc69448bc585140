"""Generated data sets: coloured shapes and their names."""
