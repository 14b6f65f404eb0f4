"""Data set builders. One is a file called as the builder, with its options and `BUILDER` in it.

Importing one imports neither pandas nor torch nor `datasets`.
"""
