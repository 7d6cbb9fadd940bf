"""Whatever the format: counts and measures are those of masks painted at full resolution."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from ltrp_core.patch_metrics import agreement
from ltrp_core.views import View
from oracles import patch_metrics as oracle
from pipeline.annotations import open_annotations
from stages.evaluation.foreground_counts import counted, unit_counts
from stages.records import view_row
from stages.types import ViewSizes

H, W, SIZE, PATCH = 61, 83, 32, 8
VIEWS = (
    View(top=0, left=0, height=61, width=61),
    View(top=7, left=11, height=32, width=32),
    View(top=20, left=3, height=19, width=55, flip=True),
)
BOXES = ((10, 4, 40, 33), (30, 50, 60, 83))
"""Top, left, bottom, right."""


def regions():
    """Foreground and ignored pixels of the image."""
    foreground = np.zeros((H, W), dtype=bool)
    for top, left, bottom, right in BOXES:
        foreground[top:bottom, left:right] = True
    ignored = np.zeros_like(foreground)
    ignored[25:45, 20:70] = True
    return foreground, ignored & ~foreground


def write_coco(path, style):
    foreground, ignored = regions()
    if style == "polygons":
        shapes = [
            {"segmentation": [[left, top, right, top, right, bottom, left, bottom]]}
            for top, left, bottom, right in BOXES
        ]
    elif style == "RLE":
        shapes = [{"segmentation": rle(foreground)}]
    else:
        shapes = [{"bbox": [left, top, r - left, b - top]} for top, left, b, r in BOXES]
    shapes.append({"segmentation": rle(ignored), "iscrowd": 1})
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W}],
        "categories": [{"id": 1, "name": "person"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 1, **s} for i, s in enumerate(shapes)
        ],
    }
    (path / "instances.json").write_text(json.dumps(document))
    return path / "instances.json"


def rle(mask):
    encoded = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": encoded["counts"].decode()}


def annotated(path, style):
    """Writes the regions in one format; returns the annotations and the pixels they can say."""
    foreground, ignored = regions()
    nothing = np.zeros_like(ignored)
    if style in ("polygons", "RLE", "boxes"):
        shape = "boxes" if style == "boxes" else "masks"
        return open_annotations(write_coco(path, style), shape=shape), foreground, ignored
    if style == "voc-boxes":
        objects = "".join(
            f"<object><name>person</name><bndbox><xmin>{left + 1}</xmin><ymin>{top + 1}</ymin>"
            f"<xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
            for top, left, bottom, right in BOXES
        )
        size = f"<size><width>{W}</width><height>{H}</height></size>"
        (path / "a.xml").write_text(f"<annotation>{size}{objects}</annotation>")
        return open_annotations(path), foreground, nothing
    values = {
        "voc-masks": np.where(foreground, 15, np.where(ignored, 255, 0)),
        "ade20k": np.where(foreground, 13, np.where(ignored, 0, 3)),
        "masks": np.where(foreground, 255, 0),
    }[style].astype(np.uint8)
    Image.fromarray(values).save(path / "a.png")
    source = open_annotations(path, format=style)
    return source, foreground, nothing if style == "masks" else ignored


def seen_through(mask, view):
    """The mask through crop, nearest resize and flip, pixel by pixel."""
    seen = np.zeros((SIZE, SIZE), dtype=bool)
    for y in range(SIZE):
        for x in range(SIZE):
            column = SIZE - 1 - x if view.flip else x
            row = view.top + int((y + 0.5) * view.height / SIZE)
            seen[y, x] = mask[row, view.left + int((column + 0.5) * view.width / SIZE)]
    return seen


@pytest.mark.parametrize(
    "style", ["polygons", "RLE", "boxes", "voc-boxes", "voc-masks", "ade20k", "masks"]
)
def test_counts_and_measures_equal_those_of_full_masks(tmp_path, style):
    source, foreground, ignored = annotated(tmp_path, style)
    rows = len(VIEWS)
    arrays = {
        "key": np.array(["a"] * rows + ["b"], dtype=object),
        "size": np.tile(np.array([H, W], np.int32), (rows + 1, 1)),
        "crop": np.array([[view_row(v)] for v in (*VIEWS, VIEWS[0])], np.float32),
        "flip": np.array([[v.flip] for v in (*VIEWS, VIEWS[0])]),
    }
    run = ViewSizes(image_size=SIZE, patch_size=PATCH)
    counts = unit_counts("unit", arrays, run, source, "all", None)
    assert counts["is_annotated"].tolist() == [True] * rows + [False]
    kept = torch.from_numpy(np.random.default_rng(0).permutation(16)[None, :7].repeat(rows, 0))
    found = agreement(kept, counted(counts, np.arange(rows), PATCH))
    for row, view in enumerate(VIEWS):
        pixels = oracle.counts(
            kept[row].tolist(), seen_through(foreground, view), seen_through(ignored, view), PATCH
        )
        assert int(found.intersection[row]) == pixels["intersection"] > 0
        assert int(found.kept_pixels[row]) == pixels["kept_pixels"]
        assert int(found.foreground[row]) == pixels["foreground"]
        for name, expected in oracle.measures(pixels).items():
            assert float(getattr(found, name)[row]) == expected
