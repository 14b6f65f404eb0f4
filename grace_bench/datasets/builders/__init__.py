"""Data set builders: one file each, called as the builder is."""
