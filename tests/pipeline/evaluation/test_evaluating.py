"""A whole evaluation on the disk: tables, figures, and counts that the next one takes."""

import csv
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from command_line import one_line_error, run
from PIL import Image
from selected_caches import PATCH, SIZE, write_selections

from ltrp_core.errors import RequestError
from oracles import patch_metrics as oracle
from pipeline.annotations import CocoAnnotations
from pipeline.console.progress import JsonLineProgress
from pipeline.evaluation.patches import run_evaluate_patches
from pipeline.evaluation.tables import format_table, read_differences, read_groups, read_rows
from pipeline.store import open_cache
from stages.evaluate_patches import EvaluateConfig
from stages.evaluation.rows import IMAGE_COLUMNS, MEASURES

QUIET = JsonLineProgress(every_s=1e9)
UNITS = {"one": ["x/a", "x/b", "x/c"], "two": ["x/d", "x/none"]}
TOOK = "took the counts of"


@pytest.fixture
def folder(tmp_path):
    """Selections of two units, and annotations of four of their five images."""
    write_selections(tmp_path / "selections", UNITS)
    write_annotations(tmp_path / "instances.json")
    return tmp_path


def write_annotations(path, right=20):
    keys = ["x/a", "x/b", "x/c", "x/d"]
    images = [
        {"id": i, "file_name": f"{key}.jpg", "height": SIZE, "width": SIZE}
        for i, key in enumerate(keys)
    ]
    annotations = [
        {
            "id": i,
            "image_id": i // 2,
            "category_id": 1 + i % 2,
            "segmentation": [[3 + i, 2, right, 2, right, 11 + i, 3 + i, 11 + i]],
        }
        for i in range(2 * len(keys))
    ]
    categories = [{"id": 1, "name": "person"}, {"id": 2, "name": "dog"}]
    document = {"images": images, "annotations": annotations, "categories": categories}
    path.write_text(json.dumps(document))


def evaluate(folder, selections="selections", annotations="instances.json", **options):
    return run_evaluate_patches(
        EvaluateConfig(**{"random_draws": 3, "bootstrap_draws": 50, **options}),
        selections=[folder / selections],
        annotations=folder / annotations,
        teacher=None,
        foreground="masks",
        out=folder / "evaluation",
        progress=QUIET,
    )


def took(summary):
    return sum(int(note.split()[4]) for note in summary.notes if note.startswith(TOOK))


def test_the_files_say_the_same_as_the_rows(folder):
    rows, _ = evaluate(folder, categories=("unseen", "all"), keep_ratio=(0.25, 0.4))
    out = folder / "evaluation"
    assert read_groups(out) == ["all", "unseen"]
    assert read_rows(out) == read_rows(out, "all") == [r for r in rows if r.categories == "all"]
    assert read_rows(out, "unseen") == [r for r in rows if r.categories == "unseen"]
    with pytest.raises(RequestError, match="holds all, unseen, not learned"):
        read_rows(out, "learned")
    assert format_table(rows) in (out / "evaluation.txt").read_text()
    with (out / "evaluation.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["iou_high"]) for line in lines] == [row["iou_high"] for row in rows]
    page = (out / "evaluation.md").read_text()
    assert f"| {rows[0]['recall']:.3f} [" in page
    assert f"| {rows[0]['pooled_iou']:.3f} [" in page
    differences = pq.read_table(out / "evaluation_differences.parquet").to_pylist()
    assert {d["reference"] for d in differences} == {
        "border contrast",
        "patch variance",
        "center",
        "random",
    }
    assert {d["keep_ratio"] for d in differences if d["source"] == "ranker"} == {0.25}
    for group in ("all", "unseen"):
        with Image.open(out / f"evaluation-{group}.png") as image:
            assert image.width > 1000
        assert "<svg" in (out / f"evaluation-{group}.svg").read_text()[:1000]


def test_the_file_of_images_holds_what_masks_at_full_resolution_say(folder):
    evaluate(folder)
    table = pq.read_table(folder / "evaluation" / "evaluation_images.parquet")
    assert set(table.column_names) >= {"key", "categories", "source", "keep_ratio"}
    rows = {(r["key"], r["source"], r["keep_ratio"]): r for r in table.to_pylist()}
    assert len(rows) == table.num_rows == 4 * 7 * 2
    cache = open_cache(folder / "selections")
    annotations = CocoAnnotations(folder / "instances.json")
    for unit in cache.units:
        arrays = cache.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            found = annotations.foreground(key, SIZE, SIZE)
            if found is None:
                assert (key, "ranker", 0.5) not in rows
                continue
            kept = arrays["kept_0.5"][row].tolist()
            pixels = oracle.counts(kept, found.is_foreground, found.is_ignored, PATCH)
            expected = oracle.measures(pixels) | pixels
            for name in IMAGE_COLUMNS:
                assert rows[key, "ranker", 0.5][name] == expected[name]


def test_differences_from_a_chosen_selection_are_in_every_file(folder):
    names = [f"of-{number}" for number in range(6)]
    for seed, name in enumerate(names):
        write_selections(folder / name, UNITS, seed)
    chosen = [word for name in names for word in ("--selections", folder / name, "--label", name)]
    words = ("evaluate", "patches", *chosen, "--annotations", folder / "instances.json",
             "--random-draws", 2, "--bootstrap-draws", 20, "--out", folder / "out")  # fmt: skip
    text, _ = run(*words, "--against", "of-3")
    assert text == (folder / "out" / "evaluation.txt").read_text()
    title = "all categories: each minus of-3, image by image"
    assert text.count("minus") == text.count(title) == 1
    page = (folder / "out" / "evaluation.md").read_text()
    others = [name for name in names if name != "of-3"]
    rows = read_differences(folder / "out")
    stored = [(row.source, row.keep_ratio) for row in rows if row.source in names]
    assert stored == [(name, ratio) for ratio in (0.25, 0.5) for name in others]
    table = page.split(title)[1]
    for row in rows:
        if row.source in names:
            assert f"| {row.keep_ratio:g} | {row.source} | {row['precision']:+.3f} [" in table
    with (folder / "out" / "evaluation_differences.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [(line["source"], float(line["iou_low"])) for line in lines] == [
        (row.source, row["iou_low"]) for row in rows
    ]
    assert {line["reference"] for line in lines} == {"of-3"}
    assert "did you mean of-" in one_line_error(*words, "--against", "off-3")


def test_a_second_run_takes_the_counts_and_says_the_same(folder):
    first, summary = evaluate(folder, categories=("all", "learned"))
    files = {f.name: f.read_bytes() for f in (folder / "evaluation").iterdir() if f.is_file()}
    assert took(summary) == 0
    second, summary = evaluate(folder, categories=("all", "learned"))
    assert took(summary) == 4
    assert second == first
    for name, content in files.items():
        assert (folder / "evaluation" / name).read_bytes() == content, name


def test_counts_of_other_annotations_selections_or_groups_are_not_taken(folder):
    first, _ = evaluate(folder)
    write_annotations(folder / "instances.json", right=25)
    second, summary = evaluate(folder)
    assert took(summary) == 0
    assert second != first
    write_selections(folder / "others", UNITS, seed=9)
    assert took(evaluate(folder, selections="others")[1]) == 0
    assert took(evaluate(folder, selections="others", categories=("all", "unseen"))[1]) == 2


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_counts_are_counted_again(folder, damage):
    first, _ = evaluate(folder)
    for file in (folder / "evaluation" / "counts").iterdir():
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[data.index(b"foreground_pixels.npy") + 300] ^= 1
        file.write_bytes({"cut": data[:-50], "flip": data, "empty": b"", "other": b"PK"}[damage])
    second, summary = evaluate(folder)
    assert took(summary) == 0
    assert second == first


def test_unseen_says_what_is_arguable(folder):
    _, summary = evaluate(folder, categories=("unseen",))
    assert any("person" in note and "unseen-strict" in note for note in summary.notes)
    rows = read_rows(folder / "evaluation")
    assert np.isfinite([row[name] for row in rows for name in MEASURES]).all()


def write_namesakes(folder, annotations):
    """Selections of two images whose keys differ in their folders, and masks of one name."""
    write_selections(folder / "selections", {"one": ["cats/0001"], "two": ["dogs/0001"]})
    mask = np.zeros((SIZE, SIZE), np.uint8)
    mask[: SIZE // 2] = 255
    for name in annotations:
        (folder / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(folder / "masks" / name)


def test_namesakes_do_not_share_the_one_annotation(tmp_path):
    write_namesakes(tmp_path, ["0001.png"])
    for _ in range(2):  # The second time one unit's counts are there.
        with pytest.raises(RequestError, match="two images, 'cats/0001' and 'dogs/0001'"):
            evaluate(tmp_path, annotations="masks")


def test_what_was_chosen_and_what_found_no_partner_is_said(tmp_path):
    write_namesakes(tmp_path, ["dogs/0001.png", "x/0002.png"])
    _, summary = evaluate(tmp_path, annotations="masks")
    assert summary.n_ok == 1
    assert summary.notes == [
        "left out 1 selected image(s) without annotation, e.g. 'cats/0001'; "
        "1 annotation(s) are of no selected image, e.g. 'x/0002'",
        f"took {tmp_path / 'masks'} for annotations of format masks: 2 PNG(s), of which all that "
        "is not black counts; --format chooses another",
    ]
