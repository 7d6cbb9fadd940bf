"""Frozen classifiers by name: timm's, with weights of the hub or of a local file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from ltrp_core.classifiers.efficientnet_names import LITE_NORMALIZATION, is_lite, timm_names
from ltrp_core.classifiers.model import FrozenClassifier
from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import CheckpointError, RequestError, first_line, unknown_name
from ltrp_core.mae.files import read_file
from ltrp_core.weight_checks import check_finite, listed

TIMM = "timm:"
DECLARED = "declared"
"""The normalization that file or model declare."""


def normalization_names() -> list[str]:
    """Returns what `--normalization` takes."""
    return [DECLARED, *NORMALIZATIONS]


def open_classifier(
    name: str,
    weights: str = "",
    *,
    normalization: str = DECLARED,
    device: torch.device | str = "cpu",
) -> FrozenClassifier:
    """Returns a frozen classifier.

    Args:
        name: `timm:NAME`, a model of timm's, with or without the tag of its weights.
        weights: a file of its parameters, safetensors or torch's own, by timm's names or, of an
            EfficientNet-Lite, by those of the ports of TensorFlow's code; empty: timm's pretrained
            ones, from the hub. A file's last layer says how many classes there are.
        normalization: one of `NORMALIZATIONS`, or `declared`: of the file's form, else of timm's
            entry.
        device: where it computes.

    Raises:
        CheckpointError: weights that cannot be read or had, or are of another model.
        RequestError: no such model or normalization.
    """
    entry = _entry_of(name)
    if normalization not in normalization_names():
        raise unknown_name("normalization", normalization, normalization_names())
    declared = Normalization.of_shares(
        entry.get("mean") or IMAGENET_MEAN, entry.get("std") or IMAGENET_STD
    )
    origin = f"timm's entry of {name.removeprefix(TIMM)}"
    if weights:
        model, form = _from_file(name, entry, Path(weights).expanduser())
        if form is not None:
            declared, origin = form, "the form of the file's names"
    else:
        model = _from_hub(name)
    if normalization != DECLARED:
        declared, origin = NORMALIZATIONS[normalization], f"--normalization {normalization}"
    return FrozenClassifier(
        name,
        model,
        declared,
        num_classes=int(getattr(model, "num_classes", 0) or 0),
        device=device,
        origin=origin,
    )


def _entry_of(name: str) -> Mapping[str, Any]:
    """Returns what timm declares of a model and its pretrained weights."""
    called = name.removeprefix(TIMM)
    if called == name:
        raise RequestError(
            f"--frozen {name!r} is no classifier; pass timm:NAME, and with --weights FILE the "
            "file of its parameters"
        )
    base, _, tag = called.partition(".")
    if not timm.is_model(base):
        raise unknown_name("model of timm", base, timm.list_models())
    try:
        entry = timm.get_pretrained_cfg(called)
    except RuntimeError as error:  # it has no such tag
        known = [one.partition(".")[2] for one in timm.list_pretrained(f"{base}.*")]
        raise unknown_name(f"weights of {base}", tag, known) from error
    return {} if entry is None else entry.to_dict()


def _from_hub(name: str) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(name.removeprefix(TIMM), pretrained=True)
    except Exception as error:  # requests', httpx's, the hub's and timm's own, by version
        raise CheckpointError(
            f"the weights of {name} cannot be had from the hub ({first_line(error)}); download "
            "them where there is a network and pass the file with --weights"
        ) from error
    return model


def _from_file(
    name: str, entry: Mapping[str, Any], path: Path
) -> tuple[nn.Module, Normalization | None]:
    """Returns the model with the parameters of a file, and the normalization of the file's form."""
    if path.is_dir():
        raise CheckpointError(f"--weights {path} is a folder; pass the file of weights in it")
    state = read_file(path, advice="pass a file that holds the parameters alone").state
    form = LITE_NORMALIZATION if is_lite(state) else None
    head = entry.get("classifier")
    if form is not None:
        state = timm_names(state, timm.create_model(name.removeprefix(TIMM)).state_dict())
    # Models with several heads, say, have none that could be asked: those keep timm's number.
    last = state.get(f"{head}.weight") if isinstance(head, str) else None
    sizes: dict[str, Any] = {} if last is None or not last.ndim else {"num_classes": len(last)}
    model: nn.Module = timm.create_model(name.removeprefix(TIMM), **sizes)
    _check_same(name, path, model.state_dict(), state)
    check_finite(path, state)
    model.load_state_dict(state)
    return model, form


def _check_same(
    name: str, path: Path, wanted: Mapping[str, Tensor], found: Mapping[str, Tensor]
) -> None:
    """Checks that a file has the parameters of a model, no more and no less.

    Raises:
        CheckpointError: it has not; names the first ones.
    """
    others = [
        f"{key} is {tuple(found[key].shape)}, not {tuple(value.shape)}"
        for key, value in wanted.items()
        if key in found and found[key].shape != value.shape
    ]
    faults = [
        f"{len(keys)} {words} ({listed(keys)})"
        for words, keys in (
            ("missing", _without(wanted, found)),
            ("unknown", _without(found, wanted)),
            ("of another shape", others),
        )
        if keys
    ]
    if faults:
        raise CheckpointError(
            f"{path} is not of {name}: of its parameters {'; '.join(faults)}; pass the model that "
            "the file was written from"
        )


def _without(these: Collection[str], those: Collection[str]) -> list[str]:
    return [key for key in these if key not in those]
