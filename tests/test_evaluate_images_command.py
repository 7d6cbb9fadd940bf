"""`evaluate images` as a user runs it: what a frozen classifier says of the kept patches."""

import csv
import io
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from command_line import one_line_error, run
from PIL import Image
from safetensors.torch import save_file

from ltrp_core.selection import num_kept
from ltrp_core.selectors import SELECTORS
from ltrp_core.selectors.baselines import CENTER
from ltrp_core.selectors.references import center_scores
from oracles.fillings import hidden_behind
from oracles.kept_tokens import masked_logits
from pipeline.evaluation.image_tables import read_image_rows

SIZE, PATCH, GRID = 160, 16, 10
RATIOS = (0.3, 0.6)
CLASSES = {"astronaut": 2, "cat": 0, "coffee": 3}
"""By the photographs' names; the classifiers know four."""


def weights_of(name, path):
    """Writes random parameters of a small model of timm's with four classes; returns the model."""
    torch.manual_seed(4)
    model = timm.create_model(name, num_classes=4).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.1)
    save_file(model.state_dict(), path)
    return model


def write_shards(folder, photographs, unlabeled=()):
    """Three tars of four photographs, each with its class beside it."""
    folder.mkdir()
    for number in range(3):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for name, content in sorted(photographs.items())[4 * number : 4 * number + 4]:
                members = {f"{name}.jpg": content}
                if name not in unlabeled:
                    members[f"{name}.cls"] = str(CLASSES[name.split("_")[0]]).encode()
                for member, data in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder


def select(shards, out, selector, *more):
    ratios = [word for ratio in RATIOS for word in ("--keep-ratio", ratio)]
    run("select", "--shards", shards, "--selector", selector, "--image-size", SIZE, *ratios,
        "--homogeneous", 0, "--crop", "resize", "--out", out, *more)  # fmt: skip
    return out


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """Shards with labels, selections of two methods, and weights of two classifiers."""
    folder = tmp_path_factory.mktemp("images")
    shards = write_shards(folder / "shards", photographs)
    select(shards, folder / "center", "center")
    select(shards, folder / "varied", "patch-variance")
    weights_of("test_vit", folder / "vit.safetensors")
    weights_of("test_resnet", folder / "resnet.safetensors")
    return folder


def arguments(folder, model="test_vit", *more, shards="shards", selections=("center", "varied")):
    weights = folder / f"{model.removeprefix('test_')}.safetensors"
    chosen = [word for name in selections for word in ("--selections", folder / name)]
    return ("evaluate", "images", *chosen, "--shards", folder / shards, "--device", "cpu",
            "--frozen", f"timm:{model}", "--weights", weights,
            "--bootstrap-draws", 50, *more)  # fmt: skip


def evaluate(folder, out, model="test_vit", *more, **options):
    said = run(*arguments(folder, model, "--out", out, *more, **options))
    rows = {(row.filling, row.source, row.keep_ratio): row for row in read_image_rows(out)}
    return rows, said


def views(photographs):
    found = {}
    for name, content in photographs.items():
        with Image.open(io.BytesIO(content)) as image:
            pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)[None]
        found[name] = torch.nn.functional.interpolate(
            pixels, (SIZE, SIZE), mode="bicubic", antialias=True
        )[0]
    return found


def measures(logits, full, name):
    """top1, top5, probability and drop, from whole logits (4,)."""
    true = CLASSES[name.split("_")[0]]
    shares, before = logits.softmax(0), full.softmax(0)
    is_first = int(logits.argmax()) == true
    return float(is_first), 1.0, float(shares[true]), float(before[true] - shares[true])


@torch.no_grad()
def by_hand(model, photographs, ratio, seen):
    """The measures (12, 4) of the nearest patches to the middle, image by image."""
    order = center_scores(GRID).argsort(descending=True, stable=True)
    kept = order[: num_kept(ratio, GRID**2)].tolist()
    found = []
    for name, view in sorted(views(photographs).items()):
        full = model(view.float()[None] / 127.5 - 1)[0]
        found.append(measures(seen(view, kept), full, name))
    return np.array(found)


@torch.no_grad()
def test_a_transformer_is_given_the_kept_tokens_alone(folder, photographs, tmp_path):
    rows, (out, err) = evaluate(folder, tmp_path / "r")
    model = weights_of("test_vit", tmp_path / "again.safetensors")
    for ratio in RATIOS:
        expected = by_hand(
            model, photographs, ratio,
            lambda view, kept: masked_logits(model, view.float() / 127.5 - 1, kept),
        )  # fmt: skip
        row = rows["none", "center (selected)", ratio]
        found = [row[name] for name in ("top1", "top5", "probability", "drop")]
        np.testing.assert_allclose(found, expected.mean(axis=0), atol=1e-5)
        assert row["drop_low"] <= row["drop"] <= row["drop_high"]
        assert (row.kept, row.num_images) == (num_kept(ratio, GRID**2), 12)
        # The same patches, chosen by the evaluation itself.
        assert rows["none", "center", ratio].figures == row.figures
        assert rows["none", "patch variance", ratio].figures == (
            rows["none", "patch variance (selected)", ratio].figures
        )
    assert rows["none", "full image", 1.0]["drop"] == 0
    assert ("none", "nothing kept", 0.0) not in rows
    assert (tmp_path / "r" / "classification.txt").read_text() == out
    assert "pixels go in as (x - 127.5) / 127.5, by timm's entry of test_vit" in err
    assert "labels are numbers, taken for those of timm:test_vit: 0 to 3" in err


@torch.no_grad()
def test_other_models_see_the_rest_filled(folder, photographs, tmp_path):
    more = ("--filling", "mean", "--filling", "blur", "--baseline", "none")
    rows, _ = evaluate(folder, tmp_path / "r", "test_resnet", *more)
    model = weights_of("test_resnet", tmp_path / "again.safetensors")
    gray = np.full((3, SIZE, SIZE), 127.5)

    def seen(view, kept):
        painted = hidden_behind(view.numpy(), kept, PATCH, gray)
        return model(torch.from_numpy(painted).float()[None] / 127.5 - 1)[0]

    expected = by_hand(model, photographs, 0.3, seen).mean(axis=0)
    row = rows["mean", "center (selected)", 0.3]
    found = [row[name] for name in ("top1", "top5", "probability", "drop")]
    np.testing.assert_allclose(found, expected, atol=1e-4)
    nothing = by_hand(model, photographs, 0.3, lambda view, kept: seen(view, [])).mean(axis=0)
    assert rows["mean", "nothing kept", 0.0]["probability"] == pytest.approx(nothing[2], abs=1e-4)
    assert {name[0] for name in rows} == {"mean", "blur"}
    assert {name[1] for name in rows} == {
        "full image", "center (selected)", "patch variance (selected)", "nothing kept"}  # fmt: skip
    blurred = rows["blur", "center (selected)", 0.3]
    assert blurred["probability"] != row["probability"]


def test_the_files_say_the_same_as_the_rows(folder, photographs, tmp_path):
    rows, _ = evaluate(folder, tmp_path / "r", "test_resnet", "--label", "a", "--label", "b")
    with (tmp_path / "r" / "classification.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [float(line["top1_high"]) for line in lines] == [r["top1_high"] for r in rows.values()]
    assert {line["classifier"] for line in lines} == {"timm:test_resnet"}
    images = pq.read_table(tmp_path / "r" / "classification_images.parquet").to_pylist()
    assert len(images) == 12 * len(rows)
    for (filling, source, ratio), row in rows.items():
        own = [i for i in images if (i["filling"], i["source"], i["keep_ratio"])
               == (filling, source, ratio)]  # fmt: skip
        assert [i["key"] for i in own] == sorted(photographs)
        assert [i["class"] for i in own] == [CLASSES[i["key"].split("_")[0]] for i in own]
        for name in ("top1", "top5", "probability", "drop"):
            assert np.mean([i[name] for i in own]) == pytest.approx(row[name], abs=1e-12)
    differences = pq.read_table(tmp_path / "r" / "classification_differences.parquet").to_pylist()
    found = {(d["source"], d["reference"], d["keep_ratio"]): d for d in differences}
    assert {pair[:2] for pair in found} == {
        *((a, b) for a in "ab" for b in ("random", "center", "patch variance", "border contrast")),
        ("a", "b"),
    }
    ours, theirs = rows["mean", "a", 0.6], rows["mean", "b", 0.6]
    assert found["a", "b", 0.6]["probability"] == pytest.approx(
        ours["probability"] - theirs["probability"])  # fmt: skip
    page = (tmp_path / "r" / "classification.md").read_text()
    assert f"| 0.6 | a | {ours['top1']:.3f} [" in page
    with Image.open(tmp_path / "r" / "classification-mean.png") as image:
        assert image.width > 1000
    assert "<svg" in (tmp_path / "r" / "classification-mean.svg").read_text()[:1000]


@pytest.mark.parametrize("against", ["b", "patch variance"])
def test_all_others_are_compared_with_the_chosen_one(folder, tmp_path, against):
    more = ("--label", "a", "--label", "b")
    rows, (out, _) = evaluate(
        folder, tmp_path / "r", "test_resnet", *more, "--against", against, "--baseline",
        "patch-variance", "--baseline", "center",
    )  # fmt: skip
    table = pq.read_table(tmp_path / "r" / "classification_differences.parquet").to_pylist()
    others = [name for name in ("a", "b", "patch variance", "center") if name != against]
    assert [(d["source"], d["reference"]) for d in table] == 2 * [(o, against) for o in others]
    for line in table:
        ours, theirs = (rows["mean", n, line["keep_ratio"]] for n in (line["source"], against))
        gain = ours["probability"] - theirs["probability"]
        assert line["probability"] == pytest.approx(gain, abs=1e-12)
    assert out.count("minus") == 1
    assert f"each minus {against}, image by image" in out


def test_how_images_are_sharded_changes_no_figure(folder, photographs, tmp_path):
    pack = tmp_path / "one"
    pack.mkdir()
    with tarfile.open(pack / "all.tar", "w") as together:
        for part in sorted((folder / "shards").glob("*.tar"), reverse=True):
            with tarfile.open(part) as tar:
                for member in tar:
                    together.addfile(member, tar.extractfile(member))
    select(pack, tmp_path / "center", "center")
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    again = arguments(tmp_path, shards="one", selections=("center",))
    run(*again, "--out", tmp_path / "r")
    run(*arguments(folder, selections=("center",)), "--out", tmp_path / "s")
    for name in ("classification.csv", "classification_differences.csv"):
        assert (tmp_path / "r" / name).read_bytes() == (tmp_path / "s" / name).read_bytes()


def test_images_without_a_label_are_counted_and_named(folder, photographs, tmp_path):
    write_shards(tmp_path / "shards", photographs, unlabeled=("cat_1", "coffee_0", "coffee_1"))
    select(tmp_path / "shards", tmp_path / "center", "center")
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    rows, (_, err) = evaluate(tmp_path, tmp_path / "r", selections=("center",))
    assert {row.num_images for row in rows.values()} == {9}
    assert "left out 3 selected image(s) without a label, e.g. 'cat_1', 'coffee_0'" in err


def test_a_keep_ratio_that_is_not_stored_is_said(folder, tmp_path):
    more = ("--keep-ratio", 0.5, "--baseline", "center")
    rows, (_, err) = evaluate(folder, tmp_path / "r", "test_vit", *more, selections=("varied",))
    assert {name[1:] for name in rows} == {("full image", 1.0), ("center", 0.5)}
    assert "at keep ratio 0.5 there is no 'patch variance (selected)': `select` stored 0.3" in err


def test_a_selection_by_a_selector_of_another_package_keeps_its_name(folder, tmp_path, monkeypatch):
    monkeypatch.setitem(SELECTORS, "theirs", CENTER)
    select(folder / "shards", tmp_path / "theirs", "theirs")
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    words = list(arguments(tmp_path, "test_vit", "--baseline", "theirs", selections=("theirs",)))
    words[words.index(tmp_path / "shards")] = folder / "shards"
    run(*words, "--out", tmp_path / "r")
    rows = {(row.source, row.keep_ratio): row for row in read_image_rows(tmp_path / "r")}
    assert rows["theirs", 0.3].figures == rows["theirs, top-k only", 0.3].figures


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        ("test_resnet", ("--filling", "none"), "cannot be given some patches only"),
        ("test_vit", ("--filling", "mean", "--filling", "mean"), "--filling is given twice: mean"),
        ("test_vit", ("--filling", "men"), "unknown filling 'men'; did you mean mean"),
        ("test_vit", ("--baseline", "centre"), "unknown baseline 'centre'; did you mean center"),
        ("test_vit", ("--against", "centr"), "'centr'; did you mean center"),
        (
            "test_vit",
            ("--against", "center (selected)", "--keep-ratio", 0.4),
            "it is stored at keep ratio 0.3, 0.6, and measured are 0.4",
        ),
        ("test_vit", ("--label", "full image", "--label", "b"), "is a row's name already"),
        ("test_vit", ("--device", "cuda:99"), "--device 'cuda:99' cannot be used here"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(folder, tmp_path, model, more, message):
    assert message in one_line_error(*arguments(folder, model, "--out", tmp_path / "r", *more))
    assert not (tmp_path / "r").exists()


def test_a_label_beyond_the_classifiers_classes_ends_the_evaluation(folder, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=3).state_dict()
    save_file(state, tmp_path / "vit.safetensors")
    words = arguments(folder, "test_vit", "--weights", tmp_path / "vit.safetensors")
    message = one_line_error(*words, "--out", tmp_path / "r")
    assert "an image is labeled 3, and timm:test_vit has 3 classes, 0 to 2" in message


def test_shards_that_are_missing_or_changed_are_named(folder, photographs, tmp_path):
    fewer = dict(sorted(photographs.items())[:8])
    write_shards(tmp_path / "fewer", fewer)
    (tmp_path / "fewer" / "part-2.tar").unlink()
    words = list(arguments(folder))
    words[words.index(folder / "shards")] = tmp_path / "fewer"
    assert "no shard given is the one unit part-2" in one_line_error(*words)
    other = dict(photographs) | {"coffee_3": photographs["coffee_0"]}
    words[words.index(tmp_path / "fewer")] = write_shards(tmp_path / "other", other)
    assert "part-2.tar changed since" in one_line_error(*words)


def test_shards_without_any_label_are_refused(folder, photographs, tmp_path):
    write_shards(tmp_path / "shards", photographs, unlabeled=photographs)
    select(tmp_path / "shards", tmp_path / "center", "center")
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    message = one_line_error(*arguments(tmp_path, selections=("center",)))
    assert "no image has a label; pack class folders with" in message


def test_two_images_of_one_key_are_refused_with_their_units(folder, photographs, tmp_path):
    shards = write_shards(tmp_path / "shards", photographs)
    (shards / "part-9.tar").write_bytes((shards / "part-0.tar").read_bytes())
    select(shards, tmp_path / "center", "center")
    (tmp_path / "vit.safetensors").write_bytes((folder / "vit.safetensors").read_bytes())
    message = one_line_error(*arguments(tmp_path, selections=("center",)))
    assert "two images are called 'astronaut_0', in units" in message
