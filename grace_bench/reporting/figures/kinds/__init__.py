"""The figures: one file each, with `make(summary, curves)`, which returns a list of `Drawing`.

`CAPTION` says what they show; it stands below them in the report.
"""
