"""What both test files of checkpoints share: a small model and what it means to be refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ltrp_core.errors import CheckpointError
from ltrp_core.mae import MAEConfig, MaskedAutoencoder, load_mae

SMALL = MAEConfig(
    width=64, depth=2, heads=1, decoder_width=32, decoder_depth=2, decoder_heads=1, grid=4
)
State = dict[str, Tensor]


def randomized(model: Any) -> Any:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in model.state_dict().values():
            value.copy_(torch.randn(value.shape, generator=generator) * 0.1)
    return model


def random_images(side: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(1))


def assert_equal(found: MaskedAutoencoder, expected: State) -> None:
    loaded = found.state_dict()
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(loaded[key], value), key


def assert_refused(source: str | Path, *words: str) -> str:
    """Returns the message with which `source` is refused: one line that holds all `words`."""
    with pytest.raises(CheckpointError) as caught:
        load_mae(source)
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message
    return message
