"""Evaluations: opened from paths, written as tables and figures."""
