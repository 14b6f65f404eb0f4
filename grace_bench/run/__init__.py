"""The loop of a run: its stream of edits, its evaluations, how far it is."""
