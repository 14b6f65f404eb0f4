"""Reads files, folders and hub data sets, and the fields of their records."""
