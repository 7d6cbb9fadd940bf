"""What a masked autoencoder learned, and how repeatable its scores are: docs/study.md.

    python studies/teacher.py reconstruct --shards photos-19.tar --out docs/study
    python studies/teacher.py draw --shards demo-out/shards --out docs/study
    python studies/teacher.py curves --logs docs/weights --out docs/study
    ltrp-pipeline score --mae mae_tiny --shards photos-19.tar --crop eval --sampler cover \
        --partitions 88 --out teacher
    ltrp-pipeline select --ranker ranker_tiny_l1 --shards photos-19.tar --out selections
    python studies/teacher.py repeat --teacher teacher --selections selections --out docs/study
    python studies/teacher.py explain --teacher teacher --selections selections \
        --shards photos-19.tar --out docs/study

The photographs are ones that the autoencoder was not trained on.
"""

from __future__ import annotations

import csv
import itertools
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from scipy.interpolate import LinearNDInterpolator, NearestNDInterpolator

from ltrp_core.bootstrap import bootstrap_interval
from ltrp_core.mae import MaskedAutoencoder, load_mae
from ltrp_core.partitions import num_visible, sample_visible
from ltrp_core.patches import patchify
from ltrp_core.ranking_metrics import kendall_tau_b
from ltrp_core.repeatability import mean_map
from ltrp_core.scoring import leave_one_out_scores
from ltrp_core.views import denormalize, make_view, normalize, render_view
from pipeline.inputs import find_shards
from pipeline.inputs.samples import read_samples
from pipeline.store import open_cache
from stages.score_maps import ScoreMaps

PATH = click.Path(path_type=Path)
RATIOS = (0.75, 0.9)


@click.group()
def study() -> None:
    """Measures and draws what docs/study.md shows of a teacher."""


# ---- reconstructions -------------------------------------------------------------------------


@study.command()
@click.option("--mae", default="mae_tiny", show_default=True)
@click.option("--shards", multiple=True, required=True)
@click.option("--images", default=200, show_default=True)
@click.option("--out", required=True, type=PATH)
def reconstruct(mae: str, shards: Sequence[str], images: int, out: Path) -> None:
    """Squared error over masked patches: the model, and two fillings that know no other image."""
    model = load_mae(mae)
    keys, views = _views(shards, images, model.config.image_size)
    rows = []
    for ratio in RATIOS:
        visible = _visible(keys, model, ratio)
        hidden = torch.ones(len(keys), model.config.num_patches, dtype=torch.bool)
        hidden.scatter_(1, visible, False)
        with torch.no_grad():
            drawn = torch.cat(
                [
                    model.decode(model.encode(a, v), v)
                    for a, v in zip(views.split(32), visible.split(32), strict=True)
                ]
            )
        fillings = {
            "mae": drawn,
            "mean of the visible patches": _mean_filled(model, views, visible),
            "bilinear between visible patches": _interpolated(model, views, visible),
        }
        errors = {
            name: _error(model.patchify(views), filled, hidden) for name, filled in fillings.items()
        }
        for name, values in errors.items():
            low, high = bootstrap_interval(values, seed=0)
            rows.append(
                {
                    "masked": ratio,
                    "filling": name,
                    "error": round(float(values.mean()), 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    # A share of images; of the autoencoder itself there is none.
                    "autoencoder better": (
                        round(float((errors["mae"] < values).mean()), 3) if name != "mae" else ""
                    ),
                }
            )
    _write(out / "reconstruction.csv", rows)


@study.command()
@click.option("--mae", default="mae_tiny", show_default=True)
@click.option("--shards", multiple=True, required=True)
@click.option("--out", required=True, type=PATH)
def draw(mae: str, shards: Sequence[str], out: Path) -> None:
    """Pictures of reconstructions: a row per image."""
    model = load_mae(mae)
    keys, views = _views(shards, 12, model.config.image_size)
    out.mkdir(parents=True, exist_ok=True)
    pictures = _pictures(model, keys, views)
    Image.fromarray(pictures).save(out / "reconstructions.jpg", quality=88)


@study.command()
@click.option(
    "--logs", required=True, type=PATH, help="with the .jsonl of both trainings"
)
@click.option("--out", required=True, type=PATH)
def curves(logs: Path, out: Path) -> None:
    """The two trainings, by epoch: what they reached on photographs they had not seen."""
    figure = Figure(figsize=(8, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, axes, lines in (
        ("mae_tiny", left, {"error_75": "75 % masked", "error_90": "90 % masked"}),
        ("ranker_tiny_l1", right, {"tau": "Kendall's tau-b", "top1": "same best patch of 19"}),
    ):
        text = (logs / f"{name}.jsonl").read_text()
        rows = [json.loads(line) for line in text.splitlines()]
        for key, label in lines.items():
            axes.plot([row["epoch"] for row in rows], [row[key] for row in rows], label=label)
        axes.set(title=name, xlabel="epoch")
        axes.grid(alpha=0.3)
        axes.legend()
    left.set(ylabel="squared error, normalized pixels", ylim=(0, None))
    right.set(ylabel="agreement with the teacher", ylim=(0, 1))
    figure.savefig(out / "curves.png", dpi=130)


def _views(shards: Sequence[str], count: int, size: int) -> tuple[list[str], torch.Tensor]:
    samples = itertools.chain.from_iterable(read_samples(shard) for shard in find_shards(shards))
    keys, views = [], []
    for sample in itertools.islice(samples, count):
        view = make_view("eval", sample.key, 0, *sample.image.shape[:2], 0)
        keys.append(sample.key)
        views.append(render_view(sample.image, view, size))
    return keys, normalize(torch.stack(views))


def _visible(keys: Iterable[str], model: MaskedAutoencoder, ratio: float) -> torch.Tensor:
    length = model.config.num_patches
    return torch.from_numpy(
        np.concatenate([sample_visible(key, 0, 1, length, ratio, 0) for key in keys])
    )


def _mean_filled(
    model: MaskedAutoencoder, views: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    patches = model.patchify(views)
    index = visible[..., None].expand(-1, -1, patches.shape[-1])
    colors = patches.gather(1, index).unflatten(2, (-1, 3)).mean(dim=(1, 2))
    return colors.repeat(1, patches.shape[-1] // 3)[:, None].expand_as(patches)


def _interpolated(
    model: MaskedAutoencoder, views: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """Linear between the mean colors of the visible patches; outside their hull the nearest one."""
    side, size = model.patch_size, model.config.image_size
    rows, columns = np.mgrid[:size, :size].reshape(2, -1) + 0.5
    filled = []
    patches = model.patchify(views).unflatten(2, (-1, 3)).mean(dim=2)
    for colors, places in zip(patches, visible, strict=True):
        index = places.numpy()
        centers = np.stack([index // model.grid, index % model.grid], axis=1) * side + side / 2
        values = colors[places].numpy()
        image = LinearNDInterpolator(centers, values)(rows, columns)
        outside = np.isnan(image[:, 0])
        image[outside] = NearestNDInterpolator(centers, values)(rows[outside], columns[outside])
        filled.append(torch.from_numpy(image.reshape(size, size, 3)).permute(2, 0, 1).float())
    return model.patchify(torch.stack(filled))


def _error(truth: torch.Tensor, filled: torch.Tensor, hidden: torch.Tensor) -> np.ndarray:
    """(N,) mean squared error over each image's masked patches."""
    squared = (truth - filled).square().mean(dim=2)
    error: np.ndarray = ((squared * hidden).sum(dim=1) / hidden.sum(dim=1)).double().numpy()
    return error


@torch.no_grad()
def _pictures(model: MaskedAutoencoder, keys: Sequence[str], views: torch.Tensor) -> np.ndarray:
    """A row per image: photograph, 25 % visible, filled in; 10 % visible, filled in, and what
    changes where the patch of the largest and of the smallest score is left out (four times)."""
    strips = []
    for row in range(len(keys)):
        image, strip = views[row : row + 1], [views[row]]
        own = model.patchify(image)
        for ratio in RATIOS:
            visible = _visible([keys[row]], model, ratio)
            index = visible[..., None].expand(-1, -1, own.shape[-1])
            drawn = model.decode(model.encode(image, visible), visible)
            for canvas in (torch.zeros_like(own), drawn):
                strip.append(model.unpatchify(canvas.scatter(1, index, own.gather(1, index)))[0])
        scores = leave_one_out_scores(model, image, visible)[0]
        for left_out in (scores.argmax(), scores.argmin()):
            kept = torch.cat([visible[:, :left_out], visible[:, left_out + 1 :]], dim=1)
            changed = (drawn - model.decode(model.encode(image, kept), kept)).abs()
            strip.append(4 * model.unpatchify(changed)[0] + normalize(torch.zeros(3, 1, 1)))
        strips.append(torch.nn.functional.pad(torch.stack(strip), (2, 2, 2, 2), value=9.0))
    pictures = denormalize(torch.stack(strips))
    drawn_rows = pictures.permute(0, 3, 1, 4, 2).flatten(2, 3).flatten(0, 1)
    return np.asarray(
        Image.fromarray(drawn_rows.numpy()).resize(
            (drawn_rows.shape[1] // 2, drawn_rows.shape[0] // 2), Image.Resampling.LANCZOS
        )
    )


# ---- repeatability ---------------------------------------------------------------------------


@study.command()
@click.option("--teacher", required=True, help="cache of `score --crop eval --sampler cover`")
@click.option("--selections", help="cache of `select` on the same images")
@click.option("--out", required=True, type=PATH)
def repeat(teacher: str, selections: str | None, out: Path) -> None:
    """Agreement of two draws of the teacher, and of a ranker, by how often patches were scored."""
    cache = open_cache(teacher)
    length = (int(cache.run["image_size"]) // int(cache.run["patch_size"])) ** 2
    cover = -(-length // num_visible(length, float(cache.run["mask_ratio"])))
    covers = int(cache.run["partitions"]) // cover
    arrays = [cache.read(unit, ["key", "visible", "score"]) for unit in cache.units]
    keys = [key for one in arrays for key in one["key"].tolist()]
    visible = np.concatenate([one["visible"][:, 0] for one in arrays]).astype(np.int64)
    score = np.concatenate([one["score"][:, 0] for one in arrays])

    def teacher_map(first: int, last: int) -> torch.Tensor:
        some = slice(first * cover, last * cover)
        return torch.from_numpy(mean_map(visible[:, some], score[:, some], length)[0])

    ranked = _ranker_maps(selections, keys) if selections else None
    rows = []
    for count in (2**power for power in range(covers.bit_length()) if 2**power <= covers):
        pairs = (
            [("ranker and teacher", ranked, teacher_map(0, count))] if ranked is not None else []
        )
        if 2 * count <= covers:
            draws = teacher_map(0, count), teacher_map(count, 2 * count)
            pairs.append(("two draws of the teacher", *draws))
        for name, ours, theirs in pairs:
            taus = kendall_tau_b(ours, theirs)
            low, high = bootstrap_interval(taus, seed=0)
            rows.append(
                {
                    "pair": name,
                    "scored so often": count,
                    "partitions": count * cover,
                    "tau": round(float(taus.mean()), 4),
                    "low": round(low, 4),
                    "high": round(high, 4),
                    "images": len(taus),
                }
            )
    _write(out / "repeatability.csv", rows)
    _plot(rows, out / "repeatability.png")


# ---- what the scores go by -------------------------------------------------------------------


@study.command()
@click.option("--teacher", required=True, help="cache of `score --crop eval --sampler cover`")
@click.option("--selections", required=True, help="cache of `select` on the same images")
@click.option("--shards", multiple=True, required=True)
@click.option("--out", required=True, type=PATH)
def explain(teacher: str, selections: str, shards: Sequence[str], out: Path) -> None:
    """Agreement of teacher and ranker with properties of patches that need no model."""
    cache = open_cache(teacher)
    grid = int(cache.run["image_size"]) // int(cache.run["patch_size"])
    arrays = [cache.read(unit, ["key", "visible", "score"]) for unit in cache.units]
    keys = [key for one in arrays for key in one["key"].tolist()]
    visible = np.concatenate([one["visible"][:, 0] for one in arrays]).astype(np.int64)
    score = np.concatenate([one["score"][:, 0] for one in arrays])
    maps = {
        "teacher": torch.from_numpy(mean_map(visible, score, grid**2)[0]),
        "ranker": _ranker_maps(selections, keys),
    }
    found, views = _views(shards, len(keys), int(cache.run["image_size"]))
    place = {key: row for row, key in enumerate(found)}
    properties = _properties(views[[place[key] for key in keys]], int(cache.run["patch_size"]))
    rows = []
    for name, values in properties.items():
        row: dict[str, Any] = {"property": name}
        for source, scores in maps.items():
            taus = kendall_tau_b(scores, values.double())
            low, high = bootstrap_interval(taus, seed=0)
            row |= {
                source: round(float(taus.mean()), 3),
                f"{source} low": round(low, 3),
                f"{source} high": round(high, 3),
            }
        rows.append(row)
    _write(out / "properties.csv", rows)


def _properties(views: torch.Tensor, patch_size: int) -> dict[str, torch.Tensor]:
    """Maps (N, L) that follow from the pixels, or from the place, alone."""
    patches = patchify(views, patch_size).unflatten(2, (-1, 3))
    colors = patches.mean(dim=2)
    grid = views.shape[-1] // patch_size
    image = colors.unflatten(1, (grid, grid)).permute(0, 3, 1, 2)
    around = torch.nn.functional.pad(image, (1, 1, 1, 1), mode="replicate")
    neighbors = [
        around[:, :, down : down + grid, right : right + grid]
        for down in range(3)
        for right in range(3)
    ]
    contrast = torch.stack([(image - other).abs().sum(dim=1) for other in neighbors]).sum(dim=0)
    middle = (torch.arange(grid) - (grid - 1) / 2).square()
    return {
        "color differs from the neighbors'": contrast.flatten(1),
        "color differs from the image's mean": (
            (colors - colors.mean(dim=1, keepdim=True)).abs().sum(dim=-1)
        ),
        "variance within the patch": patches.var(dim=2).mean(dim=-1),
        "near the center": -(middle[:, None] + middle).flatten().expand(len(views), -1),
        "brightness": colors.mean(dim=-1),
    }


def _ranker_maps(selections: str, keys: Sequence[str]) -> torch.Tensor:
    maps = ScoreMaps(open_cache(selections), selections)
    return torch.from_numpy(np.stack(list(maps.maps(keys))).astype(np.float64))


def _plot(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    axes = figure.add_subplot()
    for name in dict.fromkeys(row["pair"] for row in rows):
        mine = [row for row in rows if row["pair"] == name]
        x = [row["scored so often"] for row in mine]
        axes.plot(x, [row["tau"] for row in mine], "o-", label=name)
        axes.fill_between(x, [r["low"] for r in mine], [r["high"] for r in mine], alpha=0.2)
    axes.set_xscale("log", base=2)
    axes.set_xticks(x := sorted({row["scored so often"] for row in rows}), [str(v) for v in x])
    axes.set(xlabel="times that every patch was scored", ylabel="Kendall's tau-b", ylim=(0, 1))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=130)


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    click.echo(path.read_text())


if __name__ == "__main__":
    study()
