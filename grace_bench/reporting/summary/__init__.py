"""Runs gathered into summary.parquet, and read back from it."""
