"""Files, folders and hub data sets read as they are."""
