"""Frozen classifiers by name: timm's, with weights of the hub or of a file, or trained here."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import timm
import torch
from torch import nn

from ltrp_core.classifiers.efficientnet_names import LITE_NORMALIZATION, is_lite, timm_names
from ltrp_core.classifiers.model import FrozenClassifier
from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.classifiers.trained import load_classifier
from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.errors import CheckpointError, RequestError, first_line, unknown_name
from ltrp_core.mae.files import read_file
from ltrp_core.weight_checks import check_finite, check_same
from ltrp_core.weight_sources import TIMM

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
        name: `timm:NAME`, a model of timm's, with or without the tag of its weights; or a folder
            that `train-classifier` wrote, which has weights, normalization and classes.
        weights: a file of its parameters, safetensors or torch's own, by timm's names or, of an
            EfficientNet-Lite, by those of the ports of TensorFlow's code; empty: timm's pretrained
            ones, from the hub. A file's last layer says how many classes there are.
        normalization: one of `NORMALIZATIONS`, or `declared`: of the file's form, else of timm's
            entry.
        device: where it computes.

    Raises:
        CheckpointError: weights that cannot be read or had, or are of another model.
        RequestError: no such model or normalization, or weights beside a folder.
    """
    if normalization not in normalization_names():
        raise unknown_name("normalization", normalization, normalization_names())
    classes: tuple[str, ...] = ()
    if name.startswith(TIMM) or not Path(name).expanduser().is_dir():
        model, declared, origin = open_model(name, weights)
    elif weights:
        raise RequestError(f"{name} is a classifier with its weights; leave --weights out")
    else:
        model, classes, _ = load_classifier(name)
        declared, origin = NORMALIZATIONS["imagenet"], "train-classifier"
    if normalization != DECLARED:
        declared, origin = NORMALIZATIONS[normalization], f"--normalization {normalization}"
    return FrozenClassifier(
        name,
        model,
        declared,
        num_classes=int(getattr(model, "num_classes", 0) or 0),
        device=device,
        origin=origin,
        classes=classes,
    )


class OpenedModel(NamedTuple):
    """A model of timm's with trained weights."""

    model: nn.Module
    normalization: Normalization
    """Of its pixels"""
    origin: str
    """Who declared that normalization, in words"""


def open_model(name: str, weights: str = "") -> OpenedModel:
    """Returns a model of timm's by name, with its pretrained weights or those of a file.

    Args:
        name: as `open_classifier` takes it.
        weights: as `open_classifier` takes it.

    Raises:
        CheckpointError: weights that cannot be read or had, or are of another model.
        RequestError: no such model.
    """
    entry = timm_entry(name)
    declared = declared_normalization(entry)
    origin = f"timm's entry of {name.removeprefix(TIMM)}"
    if not weights:
        return OpenedModel(_from_hub(name), declared, origin)
    model, form = _from_file(name, entry, Path(weights).expanduser())
    if form is not None:
        declared, origin = form, "the form of the file's names"
    return OpenedModel(model, declared, origin)


def timm_entry(name: str) -> Mapping[str, Any]:
    """Returns what timm declares of `timm:NAME` and its pretrained weights.

    Raises:
        RequestError: it has no such model, or no such weights of it.
    """
    called = name.removeprefix(TIMM)
    if called == name:
        raise RequestError(
            f"{name!r} is no model of timm; pass timm:NAME, and with --weights FILE the "
            "file of its parameters, or the --out folder of train-classifier"
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


def declared_normalization(entry: Mapping[str, Any]) -> Normalization:
    """Returns the normalization of a model's pixels by timm's entry; ImageNet's if it has none."""
    mean, std = entry.get("mean") or IMAGENET_MEAN, entry.get("std") or IMAGENET_STD
    return Normalization.of_shares(mean, std)


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
    check_same(name, path, model.state_dict(), state)
    check_finite(path, state)
    model.load_state_dict(state)
    return model, form
