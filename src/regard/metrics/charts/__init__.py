"""Charts of scores and data sets, drawn with matplotlib."""
