"""The editors that come with grace-bench: a folder each, called as the editor."""
