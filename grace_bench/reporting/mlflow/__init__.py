"""Runs, tables and figures as MLflow has them."""
