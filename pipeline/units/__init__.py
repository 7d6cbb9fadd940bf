"""Shards in, units out: the runner of the stages that work on shards."""
