"""The tables: one file each, with `make(summary)`, which returns a list of `Table`."""
