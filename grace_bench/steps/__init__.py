"""The steps of a suite: one module a rule of the workflow."""
