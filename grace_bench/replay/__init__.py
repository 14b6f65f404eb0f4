"""Compute once, replay: what an edit cannot change is not computed again."""
