"""Two editors over the same facts and seeds: differences, intervals, tests, ranks. Torch-free."""
