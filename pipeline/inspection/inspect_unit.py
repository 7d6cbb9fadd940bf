"""One unit or one sample of a cache, as text and as a picture."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltrp_core.errors import RequestError
from pipeline.console.terminal import printable
from pipeline.inputs import Shard
from pipeline.store.cache import Cache
from pipeline.store.replay import match_shards, replay_views
from stages.protocols import Arrays
from stages.records import scored_lists
from stages.types import ScoreRun, ViewSizes, score_name

_SHOWN_KEYS = 8
_SHOWN_SCORES = 64


def find_unit(cache: Cache, name: str) -> str:
    """Returns the unit that a name means: its own, its shard's, or a beginning that one unit has.

    Raises:
        RequestError: none, or several; the message has the nearest names.
    """
    by_shard = {row.shard: unit for unit, row in cache.rows.items()}
    if name in cache.rows or name in by_shard:
        return name if name in cache.rows else by_shard[name]
    if name in cache.damaged:
        cache.receipt(name)  # says what is wrong with it
    matches = [unit for unit in cache.rows if unit.startswith(name)]
    if len(matches) == 1:
        return matches[0]
    near = matches[:3] or difflib.get_close_matches(name, [*cache.rows, *by_shard], 3, 0.4)
    what = f"{len(matches)} units begin with" if matches else "no complete unit is"
    raise RequestError(f"{cache.url}: {what} {name!r}; near: {', '.join(near) or 'nothing'}")


def describe_unit(cache: Cache, unit: str) -> str:
    """Returns a unit's receipt in words, its arrays, and how its scores are distributed."""
    receipt, arrays = cache.receipt(unit), cache.read(unit)
    source = receipt.input
    lines = [
        f"{unit}  of {printable(source['name'])} ({source['size']} bytes, "
        f"sha256 {source['sha256'][:16]}...)",
        f"  samples  {receipt.n_in} = {receipt.n_ok} ok + {receipt.n_bad} bad"
        + "".join(f", {count} {reason}" for reason, count in receipt.reasons.items()),
        f"  files    {len(receipt.files)}, {receipt.num_bytes} bytes",
    ]
    if receipt.damage:
        lines.append(f"  salvaged {printable(receipt.damage)}")
    for name, values in arrays.items():
        kind = "string" if values.dtype == object else str(values.dtype)
        size = "" if values.dtype == object else f"  {values.nbytes} bytes"
        lines.append(f"  array    {name:16} {kind:8} {values.shape}{size}")
    name = score_name(cache.run)
    if name in arrays and arrays[name].size:
        lines.append(f"  {name:8} {_distribution(arrays[name])}")
    keys = arrays["key"].tolist()
    more = f", ... {len(keys) - _SHOWN_KEYS} more" if len(keys) > _SHOWN_KEYS else ""
    lines.append(f"  keys     {', '.join(map(printable, keys[:_SHOWN_KEYS]))}{more}")
    return "\n".join(lines)


def describe_sample(cache: Cache, unit: str, key: str) -> str:
    """Returns the views of one sample and the scores of each partition, best first.

    Raises:
        RequestError: the unit has no such key; the message has the nearest ones.
    """
    arrays = cache.read(unit)
    row = _row(cache, unit, arrays, key)
    if row is None:
        return _bad_sample(cache, unit, key)
    height, width = arrays["size"][row].tolist()
    lines = [f"{printable(key)}  of {unit}: {width} x {height} px"]
    for view in range(arrays["crop"].shape[1]):
        top, left, rows, columns = (int(value) for value in arrays["crop"][row, view])
        flip = ", mirrored" if arrays["flip"][row, view] else ""
        lines.append(f"  view {view}: {columns} x {rows} px at ({left}, {top}){flip}")
        if "visible" in arrays:
            lines += _partitions(*_scored(cache, arrays, row, view), _grid(cache))
    name = score_name(cache.run)
    if cache.run.get("stage") == "select" and name in arrays:
        lines += _table(arrays[name][row].astype(float), _grid(cache))
    return "\n".join(lines)


def draw_sample(
    cache: Cache,
    unit: str,
    key: str,
    out: Path,
    *,
    shards: Sequence[Shard],
    view: int = 0,
    partition: int = 0,
) -> None:
    """Draws a view beside what the autoencoder was given of it, each patch framed by its score.

    Without `shards` the patches come from the cache, if it was made with `--pixels`.

    Raises:
        RequestError: no such key, view or partition, there is nothing to draw from, or `out` does
            not end with .png.
    """
    if out.suffix.lower() != ".png":
        raise RequestError(f"--png {out}: pass a name that ends with .png")
    arrays = cache.read(unit)
    row = _row(cache, unit, arrays, key)
    if row is None:
        raise RequestError(_bad_sample(cache, unit, key))
    shape = arrays.get("score", np.empty((0, 0, 0))).shape
    if "score" not in arrays:
        raise RequestError(f"{cache.url} holds no scores; --png draws samples of `score` caches")
    if not (0 <= view < shape[1] and 0 <= partition < shape[2]):
        raise RequestError(
            f"{unit} has {shape[1]} view(s) of {shape[2]} partition(s); "
            f"there is no view {view}, partition {partition}"
        )
    patches, score = (lists[partition] for lists in _scored(cache, arrays, row, view))
    if shards:
        one = {n: values[row : row + 1] for n, values in arrays.items() if n in _TO_REPLAY}
        shard = match_shards(cache, shards, [unit])[unit]
        picture = replay_views(cache, unit, one, shard)[0, view].transpose(1, 2, 0)
        shown = "the view"
    elif "pixels" in arrays:
        picture = _from_pixels(arrays, row, view, cache)
        shown = "what the cache holds of the view"
    else:
        raise RequestError(
            f"{cache.url} holds no pixels; pass --shards, and the view is cut out again"
        )
    title = f"{key}, view {view}, partition {partition}"
    which = f"its {_run(cache).scored} patches, by score"
    _draw(picture, (shown, which), patches, score, _grid(cache), title, out)


_TO_REPLAY = ("key", "crop", "flip")


def _run(cache: Cache) -> ScoreRun:
    return ScoreRun.of(cache.run, cache.url)


def _scored(
    cache: Cache, arrays: Arrays, row: int, view: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Returns the patches (P, m) that were scored in a view, and their scores."""
    of_view = {name: arrays[name][row, view] for name in ("visible", "score")}
    patches, score = scored_lists(_run(cache), of_view)
    return patches, score.astype(np.float64)


def _row(cache: Cache, unit: str, arrays: Arrays, key: str) -> int | None:
    keys = arrays["key"].tolist()
    if key in keys:
        return int(keys.index(key))
    bad = [entry.key for entry in cache.errors(unit)]
    if key in bad:
        return None
    near = difflib.get_close_matches(key, [*keys, *bad], 3, 0.4)
    raise RequestError(f"{unit} has no sample {key!r}; near: {', '.join(near) or 'nothing'}")


def _bad_sample(cache: Cache, unit: str, key: str) -> str:
    entry = next(entry for entry in cache.errors(unit) if entry.key == key)
    return printable(f"{key} of {unit} was left out: {entry.reason}: {entry.message}")


def _grid(cache: Cache) -> int:
    return ViewSizes.of(cache.run, cache.url).grid


def _distribution(values: NDArray[Any]) -> str:
    flat = np.sort(values.reshape(-1, values.shape[-1]).astype(float), axis=1)
    ties = float((flat[:, 1:] == flat[:, :-1]).mean()) if flat.shape[1] > 1 else 0.0
    low, first, middle, third, high = np.quantile(flat, [0, 0.25, 0.5, 0.75, 1])
    return (
        f"min {low:.4g}, quartiles {first:.4g} {middle:.4g} {third:.4g}, max {high:.4g}; "
        f"{100 * ties:.2f} % of neighbors in a record are equal"
    )


def _partitions(patches: NDArray[np.int64], score: NDArray[np.float64], grid: int) -> list[str]:
    lines = []
    for partition, (scored, values) in enumerate(zip(patches, score, strict=True)):
        order = np.lexsort((scored, -values))
        shown = order[:_SHOWN_SCORES]
        best = "  ".join(f"({scored[i] // grid},{scored[i] % grid}) {values[i]:.4g}" for i in shown)
        more = f"  ... {len(order) - len(shown)} more" if len(order) > len(shown) else ""
        lines.append(f"    partition {partition}, (row,column) score, best first: {best}{more}")
    return lines


def _table(values: NDArray[np.float64], grid: int) -> list[str]:
    rows = values.reshape(grid, grid)
    return ["    " + " ".join(f"{value:7.3f}" for value in line) for line in rows]


def _from_pixels(arrays: Arrays, row: int, view: int, cache: Cache) -> NDArray[np.uint8]:
    """Returns what the cache holds of a view, on gray: all of it, or what any partition shows."""
    run = _run(cache)
    grid, size = run.grid, run.patch_size
    canvas = np.full((grid, grid, size, size, 3), 127, dtype=np.uint8)
    is_whole = run.scored == "masked"
    places = np.arange(run.length) if is_whole else arrays["visible"][row, view].reshape(-1)
    patches = arrays["pixels"][row, view].reshape(-1, size, size, 3)
    for index, patch in zip(places, patches, strict=True):
        canvas[index // grid, index % grid] = patch
    return canvas.transpose(0, 2, 1, 3, 4).reshape(grid * size, grid * size, 3)


def _draw(
    picture: NDArray[np.uint8],
    titles: tuple[str, str],
    patches: NDArray[np.int64],
    score: NDArray[np.float64],
    grid: int,
    title: str,
    out: Path,
) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import colormaps, pyplot
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    size = len(picture) // grid
    dim = (0.12 * picture + 0.88 * 235).astype(np.uint8)
    for index in patches.tolist():
        top, left = index // grid * size, index % grid * size
        dim[top : top + size, left : left + size] = picture[top : top + size, left : left + size]
    scale = Normalize(float(score.min()), float(score.max()))
    colors = colormaps["viridis"]
    figure, panels = pyplot.subplots(1, 2, figsize=(9.2, 4.6), layout="constrained")
    for panel, image, name in zip(panels, (picture, dim), titles, strict=True):
        panel.imshow(image)
        panel.set_title(name, fontsize=10)
        panel.set_axis_off()
    for index, value in zip(patches.tolist(), score.tolist(), strict=True):
        corner = (index % grid * size - 0.5, index // grid * size - 0.5)
        frame = Rectangle(corner, size, size, fill=False, linewidth=2.2, color=colors(scale(value)))
        panels[1].add_patch(frame)
    mapped = ScalarMappable(scale, colors)
    figure.colorbar(mapped, ax=panels[1], shrink=0.82, label="pseudo-score")
    # A key is no formula, whatever dollar signs are in it.
    figure.suptitle(printable(title), fontsize=11, parse_math=False)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=110)
    pyplot.close(figure)
