"""What stands in results/: where a suite is, and how results of several machines come together."""
