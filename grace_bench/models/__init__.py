"""Models: where they come from, how they are built and trained, which layers they have."""
