"""What to run: the schema of suites, how they are composed, and the runs they plan. Torch-free."""
