"""Whole runs: a YAML file of stages, planned, executed, resumed."""
