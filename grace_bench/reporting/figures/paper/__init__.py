"""The figures of the paper, from runs of config/suites/figures.yaml."""
