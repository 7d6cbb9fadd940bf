"""Ranking models: images in, one score a patch out, higher = matters more (Sec. 3.3, Tab. 1d, 1h).

Two heads. `cls` is the released code's: one linear layer D -> L on the class token (or the pooled
features), whose unit i scores position i. `token` is ours, not in the paper: one linear layer
D -> 1 on each patch's own features; it works on any grid and moves with the content, and ranks
held-out images far better where there are few (benchmarks/RESULTS.md), so it is the default.

Two inputs. `sparse` shows the model the class token and the n visible patches only (Tab. 1h);
`dense` shows it all L. Only the plain vision transformers defined here can be sparse; Mobile-Former
and every timm backbone are dense, whatever is asked of them by `visible`.
"""

from __future__ import annotations

import difflib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ltrp_core.errors import CheckpointError, RequestError, unknown_name
from ltrp_core.ranker_models import (
    MOBILE_FORMER,
    TRANSFORMERS,
    DenseRanker,
    Head,
    Input,
    Ranker,
    TransformerRanker,
)

__all__ = [
    "RANKERS",
    "Head",
    "Input",
    "Ranker",
    "create_ranker",
    "load_ranker",
    "read_config",
    "save_ranker",
]

RANKERS = (*TRANSFORMERS, MOBILE_FORMER)
"""The ranking models defined here; any other name is looked up in timm."""

_WEIGHTS, _CONFIG = "ranker.safetensors", "config.json"
_SHOWN_KEYS = 5


def create_ranker(
    name: str,
    *,
    head: Head = "token",
    input: Input | None = None,
    grid: int = 14,
    patch_size: int = 16,
) -> Ranker:
    """Returns a ranking model with random weights, drawn from torch's default generator.

    Args:
        name: one of `RANKERS` or any timm model (`resnet50`, `vit_small_patch16_224`, ...).
        head: `cls` or `token`; see the top of this file.
        input: `sparse` or `dense`; None is sparse where the model can, else dense.
        grid: g, patches along a side.
        patch_size: p, in pixels.

    Raises:
        RequestError: a name is unknown, the model cannot be sparse or does not take g*p pixels.

    >>> create_ranker("vit_tiny", head="token")(torch.zeros(1, 3, 224, 224)).shape
    torch.Size([1, 196])
    """
    if head not in get_args(Head):
        raise unknown_name("head", head, get_args(Head))
    if input is not None and input not in get_args(Input):
        raise unknown_name("input", input, get_args(Input))
    if grid < 1 or patch_size < 1:
        raise RequestError(
            f"grid and patch_size must be >= 1; got grid={grid}, patch_size={patch_size}"
        )
    can_be_sparse = name in TRANSFORMERS
    if not can_be_sparse and name != MOBILE_FORMER and not timm.is_model(name):
        raise _unknown_ranker(name)
    if input == "sparse" and not can_be_sparse:
        raise RequestError(
            f"ranker {name!r} cannot have sparse input; only {', '.join(TRANSFORMERS)} can. "
            "Leave input out, or say dense."
        )
    config = {
        "name": name,
        "head": head,
        "input": input or ("sparse" if can_be_sparse else "dense"),
        "grid": grid,
        "patch_size": patch_size,
    }
    return TransformerRanker(config) if can_be_sparse else DenseRanker(config)


def _unknown_ranker(name: str) -> RequestError:
    known = [*RANKERS, *timm.list_models()]
    # With nothing close, timm's thousand names would bury the ones defined here.
    has_close = bool(difflib.get_close_matches(name, known, n=1, cutoff=0.5))
    return unknown_name("ranker", name, known if has_close else RANKERS)


def save_ranker(ranker: Ranker, folder: str | os.PathLike[str], extra: Mapping[str, Any]) -> None:
    """Writes `ranker.safetensors` and `config.json` into `folder`, made if it is missing.

    Args:
        ranker: any ranking model, on any device.
        folder: where to; files of an earlier ranker are replaced, each in one step.
        extra: anything JSON can hold, kept beside the ranker's own config (`read_config`).
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"ranker": ranker.config, "extra": dict(extra)}, indent=2, sort_keys=True)
    state = {key: value.detach().contiguous() for key, value in ranker.state_dict().items()}
    weights = target / f"{_WEIGHTS}.partial"
    config = target / f"{_CONFIG}.partial"
    save_file(state, weights)
    config.write_text(text + "\n", encoding="utf-8")
    weights.replace(target / _WEIGHTS)
    config.replace(target / _CONFIG)


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what `save_ranker` wrote beside the weights: keys `ranker` and `extra`.

    Raises:
        CheckpointError: `config.json` is missing or not such a file.
    """
    path = Path(folder) / _CONFIG
    if not path.is_file():
        raise CheckpointError(f"no ranker in {str(folder)!r}: {_CONFIG} is missing")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON ({error}); train the ranker again") from error
    if not isinstance(config, dict) or not isinstance(config.get("ranker"), dict):
        raise CheckpointError(f"{path} has no key 'ranker'; it was not written by save_ranker()")
    return config


def load_ranker(folder: str | os.PathLike[str]) -> Ranker:
    """Returns the ranking model that `save_ranker` wrote, on the CPU and in evaluation mode.

    Torch's default generator is left as it was.

    Raises:
        CheckpointError: a file is missing or damaged, or keys or shapes are not the model's.
    """
    config = read_config(folder)["ranker"]
    path = Path(folder) / _WEIGHTS
    if not path.is_file():
        raise CheckpointError(f"no ranker in {str(folder)!r}: {_WEIGHTS} is missing")
    try:
        with torch.random.fork_rng(devices=[]):
            ranker = create_ranker(**config)
        state = load_file(path)
    except (TypeError, RequestError) as error:
        raise CheckpointError(f"{Path(folder) / _CONFIG} describes no ranker: {error}") from error
    except SafetensorError as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    _check_state(path, state, ranker.state_dict())
    ranker.load_state_dict(state)
    return ranker.eval()


def _check_state(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    shapes = [
        f"{key}: {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    problems = {
        "missing": [key for key in expected if key not in found],
        "unexpected": [key for key in found if key not in expected],
        "of another shape": shapes,
    }
    parts = []
    for label, keys in problems.items():
        if keys:
            more = f" and {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
            parts.append(f"{label}: {', '.join(keys[:_SHOWN_KEYS])}{more}")
    if parts:
        raise CheckpointError(
            f"{path} does not fit the ranker in {_CONFIG} beside it; {'; '.join(parts)}"
        )
