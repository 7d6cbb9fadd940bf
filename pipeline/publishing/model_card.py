"""The README.md of a trained ranker, in the form of the Hugging Face hub: facts of its config only.

Whatever `config.json` does not say is left out: the card holds no default, no guess and no number
that was not measured.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltrp_core.distances import IMAGENET_MEAN, IMAGENET_STD
from ltrp_core.rankers import locate_ranker, read_config
from pipeline.files import replace_text

CARD = "README.md"

_LIBRARY = "ltrp-pipeline"
_TAGS = ["ltrp", "learning-to-rank", "patch-selection", "self-supervised"]
_TASK = "image-feature-extraction"
_MEASURES = {
    "tau": "Kendall tau-b",
    "rho": "Spearman rho",
    "ndcg5": "NDCG@5",
    "top1": "top-1 agreement",
    "cover_tau": "Kendall tau-b, all patches",
}
_SCORED_BY = {
    "mae_sha256": "sha256 of the masked autoencoder",
    "mask_ratio": "mask ratio",
    "sampler": "partitions drawn",
    "views": "views per image",
    "partitions": "partitions per view",
    "crop": "views cropped for",
    "phase": "patch removed in the",
    "metric": "distance of reconstructions",
    "region": "positions compared",
    "image_size": "image size in px",
    "patch_size": "patch size in px",
}
"""Options of `score`, as the card words them; its other options say nothing to a reader."""


def model_card(folder: str | os.PathLike[str], *, repository: str | None = None) -> str:
    """Returns the README.md of the ranker in `folder`: YAML front matter, then text.

    From `config.json`; of its `extra`, all optional: `training` (options), `scored_by` (the cache's
    run), `measures`, `ceiling` (measure -> number), `records` (what -> count). Paths among the
    options are cut to their last part.

    Args:
        folder: of a trained ranker, or `hf-hub:user/name`.
        repository: `user/name` it will have on the hub; None for a path in the example.

    Raises:
        CheckpointError: there is no ranker in `folder`.
    """
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    config = read_config(locate_ranker(folder))
    ranker, extra = config["ranker"], _mapping(config, "extra")
    measured, seen = _numbers(extra, "measures"), _seen(extra)
    results = [
        EvalResult(
            task_type=_TASK,
            dataset_type="held-out",
            dataset_name="held-out images",
            metric_type=key,
            metric_name=_measure(key, seen),
            metric_value=round(value, 4),
        )
        for key, value in measured.items()
    ]
    data = ModelCardData(
        library_name=_LIBRARY,
        tags=[*_TAGS, str(ranker["name"])],
        pipeline_tag=_TASK,
        metrics=list(measured) or None,
        model_name=repository or f"ltrp-{ranker['name']}",
        eval_results=results or None,
    )
    if not results:
        data.model_name = None  # belongs to the results
    body = _render(_context(config, repository))
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n{body}"))


def write_model_card(
    folder: str | os.PathLike[str], *, repository: str | None = None, replace: bool = True
) -> Path:
    """Writes README.md into `folder`, in one step; returns its path.

    Args:
        folder: of a trained ranker.
        repository: see `model_card`.
        replace: write over one that is there; its owner may have edited it.
    """
    path = Path(folder) / CARD
    if replace or not path.exists():
        replace_text(path, model_card(folder, repository=repository))
    return path


def _context(config: Mapping[str, Any], repository: str | None) -> dict[str, Any]:
    ranker, extra = config["ranker"], _mapping(config, "extra")
    ceiling, measures = _numbers(extra, "ceiling"), _numbers(extra, "measures")
    pixels, grid, patch = _mapping(config, "input"), ranker["grid"], ranker["patch_size"]
    scored_by, records = _mapping(extra, "scored_by"), _mapping(extra, "records")
    counts = [(f"number of {key.replace('_', ' ')}", records[key]) for key in sorted(records)]
    versions = _mapping(config, "versions")
    seen = _seen(extra)
    return {
        "learned": _learned(extra),
        "seen": seen,
        "name": ranker["name"],
        "input": ranker["input"],
        "grid": grid,
        "image_size": grid * patch,
        "keep": max(1, grid * grid // 2),
        "mean": pixels.get("mean", list(IMAGENET_MEAN)),
        "std": pixels.get("std", list(IMAGENET_STD)),
        "source": f"hf-hub:{repository}" if repository else "path/to/this/folder",
        "grid_limit": _grid_limit(ranker),
        "facts": _cells(_facts(config)),
        "data": _cells(
            [(words, scored_by[key]) for key, words in _SCORED_BY.items() if key in scored_by]
            + counts
        ),
        "recipe": _cells(sorted(_mapping(extra, "training").items())),
        "has_ceiling": bool(ceiling),
        "measures": [_row(key, seen, measures, ceiling) for key in measures],
        "versions": ", ".join(f"{name} {versions[name]}" for name in sorted(versions)),
    }


def _facts(config: Mapping[str, Any]) -> list[tuple[str, Any]]:
    ranker, architecture = config["ranker"], _mapping(config, "architecture")
    side = ranker["grid"] * ranker["patch_size"]
    facts: list[tuple[str, Any]] = [("architecture", ranker["name"])]
    facts += [
        (key, architecture[key]) for key in ("width", "depth", "heads") if key in architecture
    ]
    if "parameters" in architecture:
        facts.append(("parameters", f"{architecture['parameters']:,}"))
    return [
        *facts,
        ("input", f"{ranker['input']}, {side} x {side} px, patches of {ranker['patch_size']} px"),
        ("head", ranker["head"]),
    ]


def _grid_limit(ranker: Mapping[str, Any]) -> str:
    grid = ranker["grid"]
    return (
        f"`load_ranker(source, grid=...)` carries it to another grid than {grid} x {grid} by "
        "interpolation, for which it was not trained."
    )


def _learned(extra: Mapping[str, Any]) -> str:
    """Returns what the ranker was taught, in words that stand behind `It learned`."""
    run, training = _mapping(extra, "scored_by"), _mapping(extra, "training")
    what = "the order in which a frozen masked autoencoder misses patches when they are taken away"
    if run.get("scored") == "masked":
        what = (
            "how wrong a frozen masked autoencoder is about patches that it does not see "
            "(surprise, not the paper's label)"
        )
    mix = training.get("label_mix")
    return what + (f", mixed by rank: {_text(mix)}" if mix else "")


def _seen(extra: Mapping[str, Any]) -> str:
    """Returns which patches a list is of."""
    is_drawn = _mapping(extra, "scored_by").get("scored") == "masked"
    training = _mapping(extra, "training")
    is_drawn = is_drawn or training.get("label", "auto") == "map" or "list_length" in training
    return "lists of patches" if is_drawn else "visible patches"


def _measure(key: str, seen: str) -> str:
    name = _MEASURES.get(key, _text(key))
    return f"{name}, {seen}" if key in ("tau", "rho", "ndcg5", "top1") else name


def _row(
    key: str, seen: str, measures: Mapping[str, float], ceiling: Mapping[str, float]
) -> list[str]:
    row = [_measure(key, seen), f"{measures[key]:.3f}"]
    if not ceiling:
        return row
    if key not in ceiling:
        return [*row, "", ""]
    share = f"{measures[key] / ceiling[key]:.0%}" if ceiling[key] > 0 else ""
    return [*row, f"{ceiling[key]:.3f}", share]


def _mapping(holder: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = holder.get(key)
    return value if isinstance(value, Mapping) else {}


def _numbers(holder: Mapping[str, Any], key: str) -> dict[str, float]:
    """Returns the finite numbers under `key`, those the card knows first and in its order."""
    values = _mapping(holder, key)
    ordered = [*(k for k in _MEASURES if k in values), *(k for k in values if k not in _MEASURES)]
    return {
        name: float(values[name])
        for name in ordered
        if isinstance(values[name], int | float)
        and not isinstance(values[name], bool)
        and math.isfinite(values[name])
    }


def _cells(rows: list[tuple[str, Any]]) -> list[tuple[str, str]]:
    return [(_text(label), _text(value)) for label, value in rows]


def _text(value: object) -> str:
    """Returns `value` as a cell of a table; of a path only its last part, which is no secret."""
    match value:
        case None:
            text = "none"
        case bool():
            text = "yes" if value else "no"
        case float():
            text = f"{value:g}"
        case list() | tuple():
            text = ", ".join(_text(item) for item in value)
        case str() if "/" in value and not value.startswith(("hf-hub:", "timm:")):
            text = value.rstrip("/").rpartition("/")[2]
        case _:
            text = str(value)
    return text.replace("|", "\\|").replace("\n", " ")


def _render(context: Mapping[str, Any]) -> str:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("pipeline"),
        autoescape=False,  # Markdown, whose tables are escaped in `_text`
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("model_card.md.j2").render(context)
