"""Trainings that end in the middle, and weights that must be the same afterwards."""

from contextlib import contextmanager

import torch


class Killed(Exception):
    pass


class KilledAfter:
    """Progress that ends the run after so many training steps."""

    def __init__(self, steps):
        self.steps = steps

    @contextmanager
    def task(self, name, total, unit):
        self.is_training = unit == "steps"
        yield self

    def advance(self, amount=1, **facts):
        if self.is_training and amount == 1:
            self.steps -= 1
            if self.steps < 0:
                raise Killed


def states(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_bit_equal(one, two):
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
