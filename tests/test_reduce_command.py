"""`reduce` as a user runs it: what is in the shards, going on, wrong input, damage."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from command_line import one_line_error, run
from PIL import Image

from ltrp_core.patches import patchify
from ltrp_core.tiles import MEAN_COLOR, sheet_tiles
from ltrp_core.views import View, render_view
from pipeline.inputs.images import decode_image
from pipeline.store import open_cache

GRID, PATCH = 4, 16
SIZE = GRID * PATCH
SELECTOR = ("--selector", "patch-variance", "--image-size", SIZE, "--patch-size", PATCH)
HERE = ("--workers", 0)


def files_of(folder):
    """Content of all files that must not depend on how a run went."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file() and "log" not in path.relative_to(folder).parts
    }


def samples_of(folder):
    """Members of every sample, by key and ending, in the order of the shards."""
    samples = {}
    for path in sorted(Path(folder).glob("units/*/records.samples.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                assert member.mtime == 0
                key, _, ending = member.name.partition(".")
                samples.setdefault(key, {})[ending] = tar.extractfile(member).read()
    return samples


def kept_of(members):
    return json.loads(members["json"])["kept"]


@pytest.fixture
def labeled(photographs, make_tar, tmp_path):
    """Three tars of four photographs with a class, a JSON and a mask each."""
    folder = tmp_path / "labeled"
    folder.mkdir()
    mask = io.BytesIO()
    Image.new("L", (180, 150)).save(mask, "PNG")
    for number in range(3):
        members = []
        for place, (name, content) in enumerate(sorted(photographs.items())[number::3]):
            own = json.dumps({"caption": f"of {name}", "label": 99}).encode()
            members += [(f"{name}.cls", b"%d" % place), (f"{name}.jpg", content)]
            members += [(f"{name}.json", own), (f"{name}.seg.png", mask.getvalue())]
        make_tar(folder / f"part-{number}.tar", members)
    return folder


@pytest.fixture
def selections(labeled, tmp_path):
    run("select", "--shards", labeled, "--out", tmp_path / "sel", *SELECTOR,
        "--crop", "train", "--keep-ratio", 0.25, "--keep-ratio", 0.5)  # fmt: skip
    return tmp_path / "sel"


def reduce(shards, selections, out, *options, expect=0):
    """Returns all that was said."""
    said = run("reduce", "--shards", shards, "--selections", selections, "--out", out, *HERE,
               *options, expect=expect)  # fmt: skip
    return "".join(said)


def expected_patches(photographs, cache):
    """The kept patches (k, 3p²) of every image as they are cut from its view, by key."""
    found = {}
    for unit in cache.units:
        arrays = cache.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            top, left, height, width = (int(v) for v in arrays["crop"][row, 0])
            view = View(top=top, left=left, height=height, width=width,
                        flip=bool(arrays["flip"][row, 0]))  # fmt: skip
            pixels = render_view(decode_image(photographs[key]), view, SIZE)
            kept = sorted(arrays["kept_0.5"][row].tolist())
            found[key] = view, kept, patchify(pixels[None], PATCH)[0]
    return found


def test_patches_lie_as_tiles_and_the_rest_comes_along(labeled, selections, photographs, tmp_path):
    said = reduce(labeled, selections, tmp_path / "r", "--format", "png")
    assert "12 images ok" in said
    samples = samples_of(tmp_path / "r")
    expected = expected_patches(photographs, open_cache(selections))
    assert samples.keys() == expected.keys()
    flips = set()
    for key, (view, kept, patches) in expected.items():
        members = samples[key]
        assert list(members) == ["png", "cls", "json"]  # the mask is an image that was not kept
        sheet = decode_image(members["png"])
        tiles = sheet_tiles(sheet, PATCH, len(kept)).reshape(-1, 3 * PATCH**2)[: len(kept)]
        assert np.array_equal(tiles, patches[kept])
        document = json.loads(members["json"])
        assert document["caption"] == f"of {key}"
        assert document["kept"] == {
            "form": "patches",
            "picture": "png",
            "indices": kept,
            "grid": GRID,
            "patch_size": PATCH,
            "view": {"top": view.top, "left": view.left, "height": view.height,
                     "width": view.width, "flip": view.flip},
            "size": [150, 180],
            "label": int(members["cls"]),
        }  # fmt: skip
        flips.add(view.flip)
    assert flips == {False, True}
    run("verify", tmp_path / "r", "--deep")
    assert "12 ok" in run("status", tmp_path / "r")[0]


def test_indices_are_added_to_copies_of_the_samples(labeled, selections, photographs, tmp_path):
    reduce(labeled, selections, tmp_path / "r", "--form", "indices")
    expected = expected_patches(photographs, open_cache(selections))
    for key, members in samples_of(tmp_path / "r").items():
        assert list(members) == ["jpg", "cls", "seg.png", "json"]
        assert members["jpg"] == photographs[key]
        assert kept_of(members)["indices"] == expected[key][1]
        assert (kept_of(members)["form"], kept_of(members)["picture"]) == ("indices", "jpg")


def test_the_masked_view_is_flat_where_nothing_was_kept(labeled, selections, photographs, tmp_path):
    reduce(labeled, selections, tmp_path / "r", "--form", "masked", "--format", "png")
    expected = expected_patches(photographs, open_cache(selections))
    for key, members in samples_of(tmp_path / "r").items():
        pixels = torch.tensor(decode_image(members["png"])).permute(2, 0, 1)
        found = patchify(pixels[None], PATCH)[0]
        _, kept, patches = expected[key]
        rest = sorted(set(range(GRID**2)) - set(kept))
        assert torch.equal(found[kept], patches[kept])
        assert (found[rest].view(len(rest), -1, 3) == torch.tensor(MEAN_COLOR)).all()


@pytest.mark.parametrize("format", ["jpeg", "webp"])
@pytest.mark.parametrize("form", ["patches", "masked"])
def test_quality_is_the_picture_s(labeled, selections, tmp_path, form, format):
    sizes = []
    for quality in (30, 90):
        out = tmp_path / str(quality)
        reduce(labeled, selections, out, "--form", form, "--format", format, "--quality", quality)
        ending = {"jpeg": "jpg", "webp": "webp"}[format]
        sizes.append(sum(len(members[ending]) for members in samples_of(out).values()))
    assert 1.5 * sizes[0] < sizes[1]


def test_the_default_is_jpeg_of_quality_90_with_halved_chroma_and_optimized(
    labeled, selections, tmp_path
):
    reduce(labeled, selections, tmp_path / "r")
    data = next(iter(samples_of(tmp_path / "r").values()))["jpg"]
    image = Image.open(io.BytesIO(data))
    assert image.size == (3 * PATCH, 3 * PATCH)  # 8 patches
    assert image.layer[0][1:3] == (2, 2)
    again, plain = io.BytesIO(), io.BytesIO()
    image.save(plain, "JPEG", quality="keep")
    image.save(again, "JPEG", quality="keep", optimize=True)
    assert len(again.getvalue()) < len(plain.getvalue())
    assert len(data) == pytest.approx(len(again.getvalue()), abs=64)
    luma = image.quantization[0]
    probe = io.BytesIO()
    Image.new("RGB", (16, 16)).save(probe, "JPEG", quality=90)
    assert luma == Image.open(io.BytesIO(probe.getvalue())).quantization[0]


def test_it_goes_on_where_it_was_and_the_bytes_are_the_same(labeled, selections, tmp_path):
    reduce(labeled, selections, tmp_path / "whole", "--decode-threads", 3)
    reduce(labeled / "part-1.tar", selections, tmp_path / "parts")
    said = reduce(labeled, selections, tmp_path / "parts", "--decode-threads", 1)
    assert "2 done, 1 already there" in said
    assert files_of(tmp_path / "parts") == files_of(tmp_path / "whole")
    before = files_of(tmp_path / "whole")
    reduce(labeled, selections, tmp_path / "whole")
    assert files_of(tmp_path / "whole") == before


@pytest.mark.ray
@pytest.mark.slow
def test_ray_workers_write_the_same_bytes(labeled, selections, tmp_path):
    reduce(labeled, selections, tmp_path / "here")
    run("reduce", "--shards", labeled, "--selections", selections, "--out", tmp_path / "ray",
        "--workers", 2)  # fmt: skip
    assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")


def test_a_damaged_shard_is_found_and_made_anew(labeled, selections, tmp_path):
    out = tmp_path / "r"
    reduce(labeled, selections, out)
    before = files_of(out)
    path = sorted(out.glob("units/*/records.samples.tar"))[1]
    data = bytearray(path.read_bytes())
    data[700] ^= 1
    path.write_bytes(bytes(data))
    said, _ = run("verify", out, expect=1)
    assert "part-1" in said
    assert "another sha256 than its receipt says" in said
    run("verify", out, "--deep", "--repair", expect=1)
    assert "1 done, 2 already there" in reduce(labeled, selections, out)
    after = {n: c for n, c in files_of(out).items() if not n.startswith("quarantine/")}
    assert after == before


def test_a_cut_shard_of_it_is_no_complete_unit(labeled, selections, tmp_path):
    out = tmp_path / "r"
    reduce(labeled, selections, out)
    path = sorted(out.glob("units/*/records.samples.tar"))[0]
    path.write_bytes(path.read_bytes()[:-512])
    assert "bytes, not" in run("verify", out, expect=1)[0]


def test_a_bad_image_is_left_out_and_counted_as_in_every_stage(photographs, make_tar, tmp_path):
    good = photographs["cat_0"]
    make_tar(tmp_path / "a.tar", [("a.jpg", good), ("b.jpg", good[:900]), ("c.jpg", good)])
    run("select", "--shards", tmp_path / "a.tar", "--out", tmp_path / "s", *SELECTOR)
    said = reduce(tmp_path / "a.tar", tmp_path / "s", tmp_path / "r")
    assert "2 images ok, 1 bad" in said
    assert list(samples_of(tmp_path / "r")) == ["a", "c"]
    cache = open_cache(tmp_path / "r")
    assert [row.key for row in cache.errors(cache.units[0])] == ["b"]
    run("verify", tmp_path / "r", "--deep")


def test_json_that_is_no_object_is_kept_as_text(photographs, make_tar, tmp_path):
    own = {"a": b"[1, 2]", "b": b"not \xff JSON", "c": b"{}"}
    images = [(f"{key}.jpg", photographs["cat_0"]) for key in own]
    make_tar(tmp_path / "a.tar", sorted(images + [(f"{k}.json", text) for k, text in own.items()]))
    run("select", "--shards", tmp_path / "a.tar", "--out", tmp_path / "s", *SELECTOR)
    reduce(tmp_path / "a.tar", tmp_path / "s", tmp_path / "r")
    found = {key: json.loads(m["json"]) for key, m in samples_of(tmp_path / "r").items()}
    assert found["a"]["text"] == "[1, 2]"
    assert found["b"]["text"] == r"not \xff JSON"
    assert list(found["c"]) == ["kept"]
    assert found["c"]["kept"]["label"] is None


@pytest.mark.parametrize(
    ("beside", "label"),
    [
        ({"cls": b" 7\n", "json": b'{"label": 1}'}, 7),
        ({"json": b'{"label": 1}'}, 1),
        ({"cls": b"cat", "json": b'{"class_id": 2}'}, 2),
        ({"cls": b"9" * 30}, None),
        ({"json": b'{"label": [1, 2]}'}, None),
        ({"json": b'{"label": true}'}, None),
        ({"txt": b"7"}, None),
    ],
)
def test_the_label_is_the_class_number_that_lies_beside_an_image(
    beside, label, photographs, make_tar, tmp_path
):
    members = [(f"a.{ending}", content) for ending, content in beside.items()]
    make_tar(tmp_path / "a.tar", [("a.jpg", photographs["cat_0"]), *members])
    run("select", "--shards", tmp_path / "a.tar", "--out", tmp_path / "s", *SELECTOR)
    reduce(tmp_path / "a.tar", tmp_path / "s", tmp_path / "r")
    found = samples_of(tmp_path / "r")["a"]
    assert kept_of(found)["label"] == label
    assert {ending: found[ending] for ending in beside if ending != "json"} == {
        ending: content for ending, content in beside.items() if ending != "json"
    }


def test_a_folder_of_images_is_reduced_like_tars(photo_folder, tmp_path):
    (photo_folder / "cat" / "cat_0.jpg").rename(photo_folder / "cat" / "cat.0.jpg")
    run("select", "--shards", photo_folder, "--out", tmp_path / "s", *SELECTOR, "--unit-size", 7)
    reduce(photo_folder, tmp_path / "s", tmp_path / "r", "--unit-size", 7, "--form", "indices")
    samples = samples_of(tmp_path / "r")
    assert len(samples) == 12
    assert all(list(members) == ["jpg", "json"] for members in samples.values())
    said = one_line_error("reduce", "--shards", photo_folder, "--selections", tmp_path / "s",
                          "--out", tmp_path / "x", *HERE, "--unit-size", 5)  # fmt: skip
    assert "same --unit-size" in said


def refusals(labeled, selections, tmp_path, *options):
    return one_line_error("reduce", "--shards", labeled, "--selections", selections,
                          "--out", tmp_path / "x", *HERE, *options)  # fmt: skip


def test_what_does_not_fit_is_said_in_one_line(labeled, selections, tmp_path, shards):
    said = refusals(labeled, selections, tmp_path, "--keep-ratio", 0.75)
    assert "--keep-ratio 0.75 was not selected" in said
    assert "0.25, 0.5" in said
    said = refusals(labeled, selections, tmp_path, "--form", "indices", "--format", "png")
    assert "leave out --format and --quality" in said
    said = refusals(labeled, selections, tmp_path, "--format", "png", "--quality", 80)
    assert "--format png is lossless" in said
    said = refusals(labeled, labeled, tmp_path)
    assert "--selections" in said
    assert "`ltrp-pipeline select`" in said
    assert not (tmp_path / "x").exists()
    (shards / "part-0.tar").rename(shards / "new.tar")
    said = refusals(shards / "new.tar", selections, tmp_path)
    assert "new.tar has no unit in" in said
    assert "run `select` on it first" in said


def test_a_shard_of_another_size_is_refused_before_anything_is_written(
    labeled, selections, make_tar, photographs, tmp_path
):
    changed = [(f"{name}.jpg", content) for name, content in sorted(photographs.items())[:4]]
    make_tar(labeled / "part-1.tar", changed)
    said = refusals(labeled, selections, tmp_path)
    assert "part-1.tar is not what unit part-1" in said
    assert "bytes then" in said


def test_a_shard_of_another_content_and_the_same_size_fails_alone(labeled, selections, tmp_path):
    shard = labeled / "part-1.tar"
    shard.write_bytes(shard.read_bytes().replace(b'"label": 99', b'"label": 98'))
    said = reduce(labeled, selections, tmp_path / "r", expect=1)
    assert "2 done" in said
    assert "part-1.tar changed since unit part-1" in said
    assert len(open_cache(tmp_path / "r").units) == 2


def test_another_folder_of_reduce_is_not_written_into(labeled, selections, tmp_path):
    reduce(labeled, selections, tmp_path / "x")
    said = refusals(labeled, selections, tmp_path, "--quality", 80)
    assert "quality" in said


def test_jpeg_has_no_block_of_every_patch_size(labeled, tmp_path):
    run("select", "--shards", labeled, "--out", tmp_path / "s", "--baseline", "center",
        "--image-size", 56, "--patch-size", 14)  # fmt: skip
    said = refusals(labeled, tmp_path / "s", tmp_path)
    assert "patches of 14 px" in said
    assert "--format png" in said
    reduce(labeled, tmp_path / "s", tmp_path / "r", "--format", "png")
    run("verify", tmp_path / "r", "--deep")


def test_it_is_not_converted_nor_inspected_as_arrays(labeled, selections, tmp_path):
    reduce(labeled, selections, tmp_path / "r")
    said = one_line_error("convert", tmp_path / "r", "--to", "webdataset", "--out", tmp_path / "c")
    assert "is the output of `reduce`" in said


def test_a_run_file_reduces_what_it_has_selected(labeled, tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text(
        f"""
out: {tmp_path / "out"}
shards: {labeled}
stages:
  select:
    workers: 0
    keep-ratio: [0.25, 0.5]
    image-size: {SIZE}
    each:
      middle: {{selector: center}}
      edge: {{selector: border}}
  reduce: {{quality: 80, workers: 0}}
  reduce-edge: {{command: reduce, selections: $edge, form: indices, workers: 0}}
"""
    )
    run("run", file)
    for name, form, selected in (
        ("reduce", "patches", "middle"),
        ("reduce-edge", "indices", "edge"),
    ):
        cache = open_cache(tmp_path / "out" / name)
        assert cache.identity["form"] == form
        assert cache.identity["selections_run"] == open_cache(tmp_path / "out" / selected).run_id
    assert "reduce: complete" in "".join(run("run", file))
