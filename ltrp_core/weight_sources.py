"""What stands where a file of weights could: timm's own by name, and none at all."""

TIMM = "timm:"
"""Before the name of a model of timm's, with or without the tag of its pretrained weights."""
UNTRAINED = "random"
"""A network as it is before training."""
