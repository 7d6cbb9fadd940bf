"""Ranking models: images in, one score per patch out, higher = matters more (Sec. 3.3, Tab. 1d).

Two heads. `cls` is the released code's: one linear layer D -> L on the class token (or the pooled
features), whose unit i scores position i. `token` is ours, not in the paper: one linear layer
D -> 1 on each patch's own features; it works on any grid and moves with the content, and ranks
held-out images far better where there are few (benchmarks/RESULTS.md), so it is the default.

Two inputs. `sparse` shows the model the class token and the n visible patches only (Tab. 1h);
`dense` shows it all L. Only the plain vision transformers defined here can be sparse; Mobile-Former
and every timm backbone are dense, whatever is asked of them by `visible`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, get_args

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ltrp_core.errors import CheckpointError, RequestError, first_line, unknown_name
from ltrp_core.parsing import parse_json
from ltrp_core.rankers.grid import fit_to_grid
from ltrp_core.rankers.models import (
    MOBILE_FORMER,
    TRANSFORMERS,
    DenseRanker,
    Head,
    Input,
    Ranker,
    TransformerRanker,
)
from ltrp_core.regular_files import open_regular
from ltrp_core.shipped_weights import SHIPPED_RANKER, shipped_folder
from ltrp_core.weight_checks import check_finite, listed
from ltrp_core.weights_folder import described_input, write_weights

__all__ = [
    "RANKERS",
    "Head",
    "Input",
    "Ranker",
    "create_ranker",
    "describe_ranker",
    "load_ranker",
    "locate_ranker",
    "read_config",
    "save_ranker",
]

RANKERS = (*TRANSFORMERS, MOBILE_FORMER)
"""The ranking models defined here; any other name is looked up in timm."""

HUB_PREFIX = "hf-hub:"
WEIGHTS, CONFIG = "ranker.safetensors", "config.json"
"""The two files of a ranker's folder."""

_REMEDY = f"pass a folder that train-ranker wrote, {SHIPPED_RANKER}, or hf-hub:user/name"


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


def save_ranker(
    ranker: Ranker,
    folder: str | os.PathLike[str],
    extra: Mapping[str, Any],
    *,
    dtype: torch.dtype = torch.float32,
) -> None:
    """Writes `ranker.safetensors` and `config.json` into `folder`, made if it is missing.

    `config.json` says all that using the ranker takes: `ranker` (what `create_ranker` builds it
    from), `architecture` (sizes), `input` (the pixels it wants), `output`, `versions`, `extra`.

    Args:
        ranker: any ranking model, on any device.
        folder: where to; files of an earlier ranker are replaced, each in one step.
        extra: anything JSON can hold, kept beside the ranker's own config (`read_config`).
        dtype: of the stored weights; float16 halves the file. They are loaded as float32.

    Raises:
        CheckpointError: a weight is not finite, or too large for `dtype`; nothing is written then.
    """
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    described = {**describe_ranker(ranker), "extra": dict(extra)}
    state = {
        key: value.detach().to("cpu", dtype if value.is_floating_point() else None).contiguous()
        for key, value in ranker.state_dict().items()
    }
    write_weights(target / WEIGHTS, state, target / CONFIG, described)


def describe_ranker(ranker: Ranker) -> dict[str, Any]:
    """Returns what `config.json` says of `ranker`, in words and numbers that JSON can hold."""
    architecture: dict[str, Any] = {
        "kind": type(ranker).__name__,
        "parameters": sum(parameter.numel() for parameter in ranker.parameters()),
    }
    if ranker.config["name"] in TRANSFORMERS:
        architecture |= TRANSFORMERS[ranker.config["name"]]._asdict()
    return {
        "format": "ltrp-ranker",
        "ranker": dict(ranker.config),
        "architecture": architecture,
        "input": described_input(ranker.grid * ranker.patch_size),
        "output": "one score per patch, row-major, higher = matters more",
        "versions": _versions(),
    }


def _versions() -> dict[str, str]:
    found = {"torch": str(torch.__version__), "timm": timm.__version__}
    # A checkout on the path is not installed, and then has no version to tell.
    with contextlib.suppress(metadata.PackageNotFoundError):
        found["ltrp-pipeline"] = metadata.version("ltrp-pipeline")
    return found


def locate_ranker(source: str | os.PathLike[str]) -> Path:
    """Returns the folder of a ranker, downloaded first if `source` is of the hub.

    Args:
        source: `ranker_tiny` (which the package carries), a folder, `hf-hub:user/name` or
            `hf-hub:user/name@revision`.

    Raises:
        CheckpointError: nothing is there, or one of the two files is missing.
    """
    text = os.fspath(source)
    if text.startswith(HUB_PREFIX):
        folder = _download(text)
    else:
        folder = shipped_folder(text) or Path(text).expanduser()
    if not folder.is_dir():
        what = "a file; pass the folder it lies in" if folder.is_file() else f"no folder; {_REMEDY}"
        raise CheckpointError(f"no ranker in {text!r}: it is {what}")
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise CheckpointError(f"no ranker in {text!r}: {name} is missing; {_REMEDY}")
    return folder


def _download(source: str) -> Path:
    from huggingface_hub import snapshot_download

    repository, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
    try:
        return Path(
            snapshot_download(
                repository, revision=revision or None, allow_patterns=[CONFIG, WEIGHTS]
            )
        )
    except Exception as error:  # requests', httpx's and the hub's own, by version
        raise CheckpointError(
            f"cannot download {source!r} from the hub ({first_line(error)}); download "
            f"{CONFIG} and {WEIGHTS} elsewhere and pass the folder that holds them"
        ) from error


def read_config(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Returns what `save_ranker` wrote beside the weights: see there for the keys.

    Raises:
        CheckpointError: `config.json` is missing or not such a file.
    """
    path = Path(folder) / CONFIG
    if not path.is_file():
        raise CheckpointError(f"no ranker in {str(folder)!r}: {CONFIG} is missing; {_REMEDY}")
    remedy = "copy it again or train the ranker again"
    config = parse_json(path.read_bytes(), str(path), error=CheckpointError, remedy=remedy)
    if not isinstance(config, dict) or not isinstance(config.get("ranker"), dict):
        foreign = config.get("model_type") if isinstance(config, dict) else None
        other = f", but of a model of type {foreign!r}" if foreign else ""
        raise CheckpointError(
            f"{path} has no key 'ranker': it is not save_ranker()'s{other}; {_REMEDY}"
        )
    return config


def load_ranker(source: str | os.PathLike[str], *, grid: int | None = None) -> Ranker:
    """Returns the ranking model that `save_ranker` wrote, on the CPU and in evaluation mode.

    Torch's default generator is left as it was.

    On another `grid` than the saved one (ours, not in the paper): positions are stretched if they
    are the fixed sines and cosines, else interpolated bicubically. A `token` head has nothing that
    depends on the grid. The L rows of a `cls` head are interpolated bicubically over the grid; the
    map of the same features is then the old map, resized: nothing finer than the old grid shows,
    whatever the new one.

    Args:
        source: `ranker_tiny` (which the package carries), a folder, or `hf-hub:user/name`, with
            `@revision` if not the default branch.
        grid: g, patches along a side, of the same size in pixels; None for the saved one.

    Raises:
        CheckpointError: a file is missing, damaged or foreign, or keys or shapes are not the
            model's; the message names the file and the remedy.
        RequestError: the model cannot be carried to `grid`.
    """
    ranker = _read_ranker(locate_ranker(source))
    return ranker if grid in (None, ranker.grid) else _on_grid(ranker, grid)


def _read_ranker(folder: Path) -> Ranker:
    config = read_config(folder)["ranker"]
    path = folder / WEIGHTS
    try:
        open_regular(path).close()  # load_file would wait at a pipe for ever
        state = load_file(path)
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}); copy it again") from error
    try:
        with torch.random.fork_rng(devices=[]):
            ranker = create_ranker(**config)
    except (TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder / CONFIG} describes no ranker: {error}; copy it again"
        ) from error
    _check_state(path, state, ranker.state_dict())
    check_finite(path, state)
    # Copies into the parameters' own precision, whatever the file's.
    ranker.load_state_dict(state)
    return ranker.eval()


def _on_grid(ranker: Ranker, grid: int) -> Ranker:
    with torch.random.fork_rng(devices=[]):
        wider = create_ranker(**{**ranker.config, "grid": grid})
    fitted, _ = fit_to_grid(ranker.state_dict(), wider)
    wider.load_state_dict(fitted)
    return wider.eval()


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
    parts = [f"{label}: {listed(keys)}" for label, keys in problems.items() if keys]
    if parts:
        raise CheckpointError(
            f"{path} does not fit the ranker in {CONFIG} beside it; {'; '.join(parts)}; "
            "copy both files again, from one ranker"
        )
