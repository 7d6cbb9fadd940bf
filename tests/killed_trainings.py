"""Trainings that end in the middle, and weights that must be the same afterwards."""

from contextlib import contextmanager

import pytest
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


def resumed_and_whole(train, tmp_path, options):
    """Trains whole, and killed twice: in the middle of an epoch, then at another step.

    Checks weights and curve of the second; returns the folders of both.
    """
    whole, curve, _ = train(tmp_path / "whole", **options)
    for steps in (3, 2):
        with pytest.raises(Killed):
            train(tmp_path / "killed", KilledAfter(steps), **options)
    resumed, same_curve, _ = train(tmp_path / "killed", **options)
    assert_bit_equal(resumed, whole)
    assert same_curve == curve
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    assert (killed / "curve.jsonl").read_text() == (whole / "curve.jsonl").read_text()
    return killed, whole
