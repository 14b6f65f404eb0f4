"""Data set builders, one per file of the builder's name, with its options and `BUILDER`.

Importing one imports neither pandas nor torch nor `datasets`.
"""
