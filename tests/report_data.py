"""A report's data without a model: photographs with maps of the right kind, made-up figures."""

import dataclasses
from pathlib import Path

import numpy as np
from PIL import Image
from skimage import data as photographs

from pipeline.report import (
    CacheFigures,
    ErrorKind,
    ReportData,
    RunCard,
    TrainingCurve,
)
from pipeline.report.cache_figures import score_figures
from stages.evaluation.rows import DifferenceRow, EvaluationRow, Interval
from stages.evaluation.sources import REFERENCES, in_order
from stages.report import AttentionProfile, GalleryImage, Kept

GRID, SIDE = 14, 224
LENGTH = GRID * GRID
RATIOS = (0.25, 0.5, 0.75)
HOSTILE = '<script>window.harmed=1</script>"><img src=x onerror=window.harmed=1>/0001'


def patch_variance(photo: np.ndarray) -> np.ndarray:
    side = len(photo) // GRID
    patches = photo.reshape(GRID, side, GRID, side, 3).transpose(0, 2, 1, 3, 4)
    return patches.reshape(LENGTH, -1).astype(np.float32).var(axis=1)


def kept_count(ratio: float) -> int:
    return round(ratio * LENGTH)


def homogeneous_count(ratio: float) -> int:
    return round(0.2 * kept_count(ratio))


def gallery_image(key: str, array: np.ndarray, box: tuple[int, int, int, int]) -> GalleryImage:
    """A photograph with maps of the right kind: variance as the teacher, a blurred ranker."""
    short = min(array.shape[:2])
    photo = np.asarray(Image.fromarray(array[:short, :short]).resize((SIDE, SIDE)))
    small = Image.fromarray(photo).resize((GRID, GRID), Image.Resampling.BOX)
    rough = np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
    without = np.roll(rough, 6, axis=0)
    variance = patch_variance(photo)
    ranker = np.log1p(variance).astype(np.float16).astype(np.float32)
    ranker += 1.5 * np.hanning(GRID + 2)[1:-1].repeat(GRID).astype(np.float32)
    teacher = np.sqrt(variance) + np.random.default_rng(7).normal(size=LENGTH).astype(np.float32)
    border = np.abs(np.asarray(small, np.float32) - np.asarray(small, np.float32)[0, 0])
    scores = {"ranker": ranker, "teacher": teacher, "border contrast": border.sum(axis=2).ravel()}
    scores["patch variance"] = variance
    orders = {source: np.argsort(-values, kind="stable") for source, values in scores.items()}
    orders["random"] = np.random.default_rng(5).permutation(LENGTH)
    kept = {}
    for ratio in RATIOS:
        best = kept_count(ratio) - homogeneous_count(ratio)
        order = orders["ranker"]
        patches = np.concatenate([order[:best], order[::-1][: homogeneous_count(ratio)]])
        kept[ratio] = Kept(patches, homogeneous_count(ratio))
    visible = np.sort(np.random.default_rng(3).permutation(LENGTH)[:19])
    rows, columns = np.mgrid[:SIDE, :SIDE]
    top, left, height, width = box
    ellipse = ((rows - top - height / 2) / height) ** 2 + (
        (columns - left - width / 2) / width
    ) ** 2
    return GalleryImage(
        key=key,
        photo=photo,
        visible=visible,
        reconstruction=rough,
        left_out=int(visible[7]),
        reconstruction_without=without,
        difference=np.abs(rough.astype(np.float32) - without).mean(axis=2),
        selections={"ranker": kept},
        scores=scores,
        orders=orders,
        foreground=ellipse < 0.25,
    )


def evaluation_rows(categories: str = "all") -> list[EvaluationRow]:
    rows = []
    for ratio in RATIOS:
        for rank, source in enumerate(in_order(["ranker"])):
            precision = (
                0.99 - 0.3 * ratio if source == "oracle" else 0.62 - 0.2 * ratio - 0.03 * rank
            )
            recall = precision * ratio / 0.8
            f1 = 2 * precision * recall / (precision + recall)
            values = {"precision": precision, "recall": recall, "f1": f1, "iou": f1 / (2 - f1)}
            rows.append(
                EvaluationRow(
                    categories=categories,
                    source=source,
                    keep_ratio=ratio,
                    kept=kept_count(ratio),
                    num_images=24,
                    figures={
                        name: Interval(value, value - 0.05, value + 0.04)
                        for name, value in values.items()
                    }
                    | {
                        f"pooled_{name}": Interval(value, np.nan, np.nan)
                        for name, value in values.items()
                    },
                )
            )
    return rows


def difference_rows(categories: str = "all") -> list[DifferenceRow]:
    rows = []
    for ratio in RATIOS:
        for number, reference in enumerate(REFERENCES):
            values = dict.fromkeys(("precision", "recall", "f1", "iou"), 0.02 * number - 0.01)
            rows.append(
                DifferenceRow(
                    categories=categories,
                    source="ranker",
                    reference=reference,
                    keep_ratio=ratio,
                    kept=kept_count(ratio),
                    num_images=24,
                    figures={
                        name: Interval(value, value - 0.02, value + 0.02)
                        for name, value in values.items()
                    },
                )
            )
    return rows


def curves(epochs: int = 12) -> list[TrainingCurve]:
    steps = np.arange(1, epochs + 1)
    pretraining = [{"epoch": float(e), "loss": 0.9 / e**0.4, "lr": 1e-3 / e} for e in range(1, 41)]
    ranking = [
        {"epoch": float(e), "loss": 40 - 8 * (1 - 1 / e), "tau": t, "rho": 1.3 * t}
        | {"ndcg5": 0.7 + t / 3, "top1": 0.2 + t / 4}
        for e, t in zip(steps, 0.55 * (1 - np.exp(-steps / 4)), strict=True)
    ]
    return [
        TrainingCurve(stage="pretrain-mae", name="mae", rows=pretraining),
        TrainingCurve(
            stage="train-ranker",
            name="ranker",
            rows=ranking,
            kept_epoch=11,
            measures={name: ranking[10][name] for name in ("tau", "rho", "ndcg5", "top1")},
            ceiling={"tau": 0.63, "views": 120.0},
        ),
    ]


def cache_figures() -> CacheFigures:
    """Of a cache with errors whose messages are hostile."""
    scores = np.random.default_rng(0).lognormal(-3, 1.2, (40, 8, 19)).astype(np.float16)
    return CacheFigures(
        stage="score",
        name="cache",
        num_units=12,
        n_ok=11_988,
        n_bad=12,
        num_bytes=48_000_000,
        images_per_s=41.25,
        workers={"node-a:cuda:0": 21.0, "node-b:cuda:0": 20.25},
        seconds={"wait": 31.0, "model": 530.0, "write": 4.0},
        ahead={"read": 12.0, "decode": 240.0},
        errors=[
            ErrorKind(reason="truncated", count=9, examples=[(HOSTILE, "37 of 900 bytes")]),
            ErrorKind(reason="empty", count=3, examples=[("a/b", "the member is empty")]),
        ],
        failed=[("images-0007.tar", "not a tar: header damaged at byte 512")],
        scores=score_figures("pseudo-score", [scores]),
    )


def attention() -> list[AttentionProfile]:
    random = np.random.default_rng(2)
    return [
        AttentionProfile(
            name=name, distances=random.uniform(20, 120, (12, 6)), image_size=SIDE, num_images=3
        )
        for name in ("Teacher's encoder", "Ranker")
    ]


def report_data() -> ReportData:
    gallery = [
        gallery_image("astronaut", photographs.astronaut(), (10, 60, 210, 90)),
        gallery_image(HOSTILE, photographs.chelsea(), (30, 40, 150, 170)),
        without_teacher(gallery_image("folder/coffee", photographs.coffee(), (0, 0, 1, 1))),
    ]
    options = {"mask_ratio": 0.9, "sampler": "iid", "keep_ratio": [0.25, 0.5], "note": HOSTILE}
    return ReportData(
        title="Which patches matter <script>window.harmed=1</script>",
        grid=GRID,
        gallery=gallery,
        rows=evaluation_rows(),
        differences=difference_rows(),
        attention=attention(),
        curves=curves(),
        caches=[cache_figures()],
        runs=[
            RunCard(stage="score", options=options, facts={"images": 12345, "images/s": 7.25}),
            RunCard(stage="select", options={"tta": None, "exact": True}, facts={"units": 3}),
        ],
    )


def without_teacher(image: GalleryImage) -> GalleryImage:
    """The image as it is without a cover cache and without annotations."""

    def others(values: dict) -> dict:
        return {source: found for source, found in values.items() if source != "teacher"}

    return dataclasses.replace(
        image, scores=others(image.scores), orders=others(image.orders), foreground=None
    )


TWELVE = [
    "ranker", "border", "border-features", "patch-variance (selected)", "center (selected)",
    "saliency of a network with a long name", "class attention", "EViT", "ToMe", "DynamicViT",
    "MAE's loss", "<b>noise</b>",
]  # fmt: skip
WITHOUT_SCORES = {"EViT": (0.5,), "ToMe": (0.25, 0.5, 0.75)}
"""They only choose, at these keep ratios."""


def beside_others(data: ReportData, labels: list[str] = TWELVE) -> ReportData:
    """The report with further selections, none like another, in its pictures and its tables."""
    gallery = []
    for image in data.gallery:
        scores, orders, selections = dict(image.scores), dict(image.orders), dict(image.selections)
        for number, label in enumerate(labels[1:], start=1):
            order = np.random.default_rng(number).permutation(LENGTH)
            ratios = WITHOUT_SCORES.get(label, (0.25, 0.5))
            selections[label] = {r: Kept(order[: kept_count(r)], 0) for r in ratios}
            if label not in WITHOUT_SCORES:
                orders[label] = order
                scores[label] = np.argsort(-order).astype(np.float32)
        gallery.append(
            dataclasses.replace(image, scores=scores, orders=orders, selections=selections)
        )
    rows = [
        dataclasses.replace(row, source=source)
        for row in data.rows
        for source in (labels if row.source == "ranker" else [row.source])
    ]
    return dataclasses.replace(data, gallery=gallery, rows=rows)


def files_below(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
