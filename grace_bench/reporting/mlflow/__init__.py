"""Exports runs, tables and figures to MLflow."""
