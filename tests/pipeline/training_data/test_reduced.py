"""Folders of `reduce` as datasets: what the samples are, damage, and what a model makes of them."""

import io
import pickle
import tarfile

import numpy as np
import pytest
import timm
import torch
from command_line import run
from PIL import Image
from s3_server import s3_bucket
from torch.utils.data import ConcatDataset, DataLoader

from ltrp_core.errors import DamagedFileError, RequestError
from ltrp_core.kept_tokens import kept_output
from ltrp_core.naflex import as_naflex
from ltrp_core.patches import patchify
from ltrp_core.tiles import sheet_tiles
from ltrp_core.views import normalize, render_view
from pipeline.inputs.images import decode_image
from pipeline.store import open_cache
from pipeline.store.errors import DamagedUnitError
from pipeline.training_data.reduced import ReducedDataset, ReducedStream, collate
from pipeline.training_data.reduced_samples import decode_tiles
from stages.records import recorded_view

GRID, PATCH = 4, 16
SIZE = GRID * PATCH


@pytest.fixture(scope="module")
def made(photographs, tmp_path_factory):
    """A folder with shards, their selections, and what was kept of them in every form."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "shards").mkdir()
    for number in range(3):
        with tarfile.open(folder / "shards" / f"part-{number}.tar", "w") as tar:
            for name, content in sorted(photographs.items())[number::3]:
                members = [(f"{name}.jpg", content), (f"{name}.cls", name[-1].encode())]
                for member, data in members[: 1 if name == "cat_3" else 2]:
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    run("select", "--shards", folder / "shards", "--out", folder / "sel", "--crop", "train",
        "--baseline", "random", "--image-size", SIZE, "--patch-size", PATCH)  # fmt: skip
    for name, options in {
        "patches": (),
        "quarter": ("--keep-ratio", 0.25),
        "png": ("--format", "png"),
        "webp": ("--format", "webp"),
        "masked": ("--form", "masked", "--format", "png"),
        "masked-jpeg": ("--form", "masked"),
        "indices": ("--form", "indices"),
    }.items():
        run("reduce", "--shards", folder / "shards", "--selections", folder / "sel",
            "--out", folder / name, "--workers", 0, *options)  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def expected(made, photographs):
    """Normalized views (3, S, S), and kept indices ascending, by key."""
    cache = open_cache(made / "sel")
    found = {}
    for unit in cache.units:
        arrays = cache.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            pixels = render_view(decode_image(photographs[key]), recorded_view(arrays, row), SIZE)
            kept = torch.tensor(sorted(arrays["kept_0.5"][row].tolist()))
            found[key] = normalize(pixels), kept
    return found


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name


@pytest.mark.parametrize("form", ["png", "masked", "indices"])
def test_a_sample_is_the_kept_patches_of_its_view(made, expected, form) -> None:
    dataset = ReducedDataset(made / form)
    assert sorted(dataset.keys) == sorted(expected)
    for number, key in enumerate(dataset.keys):
        item = dataset[number]
        image, kept = expected[key]
        patches = patchify(image[None], PATCH)[0, kept]
        assert item["patches"].dtype == torch.float32
        assert torch.allclose(item["patches"][:-1], patches, atol=1e-6)
        assert not item["patches"][-1].any()
        assert item["patch_coord"].tolist() == [
            *([int(i) // GRID, int(i) % GRID] for i in kept), [GRID - 1, GRID - 1]
        ]  # fmt: skip
        assert item["patch_valid"].tolist() == [True] * len(kept) + [False]
        assert int(item["label"]) == (-1 if key == "cat_3" else int(key[-1]))


@pytest.mark.parametrize(
    ("form", "limit"), [("patches", 0.12), ("masked-jpeg", 0.12), ("webp", 0.15)]
)
def test_a_lossy_sample_is_near_to_it(made, expected, form, limit) -> None:
    dataset = ReducedDataset(made / form)
    for number, key in enumerate(dataset.keys):
        image, kept = expected[key]
        off = dataset[number]["patches"][:-1] - patchify(image[None], PATCH)[0, kept]
        assert off.square().mean().sqrt() < limit


def test_a_tile_decodes_as_it_would_alone(made) -> None:
    """And the usual decoder, whose chroma is smoothed over the edges of tiles, does not so."""
    differs = 0
    for path in sorted((made / "patches").glob("units/*/*.tar")):
        with tarfile.open(path) as tar:
            sheets = [tar.extractfile(m).read() for m in tar if m.name.endswith(".jpg")]
        for data in sheets:
            image = Image.open(io.BytesIO(data))
            tiles = sheet_tiles(decode_tiles(data), PATCH, 8).reshape(-1, PATCH, PATCH, 3)
            smooth = sheet_tiles(np.asarray(image), PATCH, 8).reshape(-1, PATCH, PATCH, 3)
            source = _tiles_before(path, data)
            for number, pixels in enumerate(source):
                alone = io.BytesIO()
                Image.fromarray(pixels).save(
                    alone, "JPEG", qtables=image.quantization, subsampling="4:2:0"
                )
                assert np.array_equal(tiles[number], decode_tiles(alone.getvalue()))
                differs += not np.array_equal(
                    smooth[number], np.asarray(Image.open(io.BytesIO(alone.getvalue())))
                )
    assert differs > 0


def _tiles_before(path, data):
    """The pixels of a sheet's tiles before they were coded: those of the PNG of the same sample."""
    other = path.parents[2].parent / "png" / path.relative_to(path.parents[2])
    with tarfile.open(path) as tar:
        name = next(
            m.name for m in tar if m.name.endswith(".jpg") and tar.extractfile(m).read() == data
        )
    with tarfile.open(other) as tar:
        sheet = decode_image(tar.extractfile(name.replace(".jpg", ".png")).read())
    return sheet_tiles(sheet, PATCH, 8).reshape(-1, PATCH, PATCH, 3)[:8]


@torch.no_grad()
def test_naflexvit_answers_as_the_vit_that_is_given_the_kept_tokens(made, expected) -> None:
    torch.manual_seed(0)
    vit = timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=3, num_classes=7).eval()
    for parameter in vit.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.1)
    dataset = ReducedDataset(made / "png")
    batch = next(iter(DataLoader(dataset, batch_size=len(dataset), collate_fn=collate)))
    images = torch.stack([expected[key][0] for key in dataset.keys])
    kept = torch.stack([expected[key][1] for key in dataset.keys])
    del batch["label"]
    found = as_naflex(vit)(batch)
    assert (found - kept_output(vit, images, kept)).abs().max() < 4e-5


@torch.no_grad()
def test_unequal_numbers_of_patches_are_padded_without_an_effect(made) -> None:
    torch.manual_seed(0)
    vit = as_naflex(timm.create_model("vit_tiny_patch16_224", img_size=SIZE, depth=2).eval())
    both = ConcatDataset([ReducedDataset(made / "quarter"), ReducedDataset(made / "patches")])
    items = [both[number] for number in (0, 13, 5, 20)]
    assert [len(item["patch_valid"]) for item in items] == [5, 9, 5, 9]
    batch = collate(items)
    assert batch["patches"].shape == (4, 9, 3 * PATCH**2)
    assert batch["patch_valid"].sum(dim=1).tolist() == [4, 8, 4, 8]
    assert batch.pop("label").tolist() == [int(item["label"]) for item in items]
    together = vit(batch)
    for number, item in enumerate(items):
        alone = collate([item])
        del alone["label"]
        assert torch.allclose(together[number], vit(alone)[0], atol=1e-5)


@pytest.mark.parametrize("processes", [0, 2])
def test_the_stream_gives_every_sample_once_in_any_order(made, processes) -> None:
    dataset = ReducedDataset(made / "patches")
    by_first_value = {float(item["patches"].sum()): item for item in dataset}
    assert len(by_first_value) == 12
    stream = ReducedStream(made / "patches", shuffle=True, buffer=3, seed=1)
    orders = []
    for epoch in (0, 0, 1):
        stream.set_epoch(epoch)
        loader = DataLoader(stream, batch_size=None, num_workers=processes)
        items = list(loader)
        orders.append([float(item["patches"].sum()) for item in items])
        assert sorted(orders[-1]) == sorted(by_first_value)
        for item in items:
            assert_equal(item, by_first_value[float(item["patches"].sum())])
    assert orders[0] == orders[1] != orders[2]
    plain = [float(item["patches"].sum()) for item in ReducedStream(made / "patches")]
    assert plain == [float(item["patches"].sum()) for item in dataset]


def test_it_goes_to_other_processes(made) -> None:
    dataset = ReducedDataset(made / "patches")
    first = dataset[0]
    assert_equal(pickle.loads(pickle.dumps(dataset))[0], first)
    loader = DataLoader(dataset, batch_size=5, num_workers=2, collate_fn=collate)
    assert sum(len(batch["label"]) for batch in loader) == 12
    with pytest.raises(IndexError):
        dataset[12]
    assert_equal(dataset[-12], first)


def copy_of(folder, target):
    for path in folder.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(folder)
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(path.read_bytes())
    return sorted(target.glob("units/*/*.tar"))


def test_a_damaged_sample_is_one_line_that_says_where(made, tmp_path) -> None:
    path = copy_of(made / "patches", tmp_path / "r")[0]
    data = bytearray(path.read_bytes())
    data[512:522] = bytes(10)  # the first picture
    path.write_bytes(bytes(data))
    dataset = ReducedDataset(tmp_path / "r")
    with pytest.raises(DamagedFileError) as error:
        dataset[0]
    message = str(error.value)
    assert "\n" not in message
    for words in (str(path), dataset.keys[0], "verify", "--repair", "`reduce` again"):
        assert words in message
    dataset[1]
    with pytest.raises(DamagedFileError, match="another sha256"):
        list(ReducedStream(tmp_path / "r", shuffle=True))


def test_a_cut_shard_is_not_opened(made, tmp_path) -> None:
    path = copy_of(made / "patches", tmp_path / "r")[0]
    path.write_bytes(path.read_bytes()[:-700])
    for kind in (ReducedDataset, ReducedStream):
        with pytest.raises(DamagedUnitError, match="verify"):
            kind(tmp_path / "r")


def test_a_shard_that_holds_fewer_samples_than_its_receipt_says_is_not_opened(
    made, tmp_path
) -> None:
    path = copy_of(made / "patches", tmp_path / "r")[0]
    data = path.read_bytes()
    path.write_bytes(data[:2048] + bytes(len(data) - 2048))  # of the same size
    with pytest.raises(DamagedUnitError, match="its receipt says 4"):
        ReducedDataset(tmp_path / "r")


def test_another_folder_is_refused(made) -> None:
    with pytest.raises(RequestError, match="is the output of `select`"):
        ReducedDataset(made / "sel")
    with pytest.raises(RequestError, match="ReducedStream"):
        ReducedDataset("s3://bucket/reduced")


@pytest.mark.slow
def test_what_is_reduced_into_an_object_store_is_the_same_and_is_streamed_from_it(made) -> None:
    with s3_bucket() as bucket:
        run("reduce", "--shards", made / "shards", "--selections", made / "sel",
            "--out", f"{bucket}/reduced", "--workers", 0)  # fmt: skip
        run("verify", f"{bucket}/reduced", "--deep")
        found = list(ReducedStream(f"{bucket}/reduced"))
    expected_items = list(ReducedStream(made / "patches"))
    assert len(found) == len(expected_items) == 12
    for ours, theirs in zip(found, expected_items):
        assert_equal(ours, theirs)


def test_training_processes_share_the_shards(made, monkeypatch) -> None:
    monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
    monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
    counts, seen = [], []
    for rank in (0, 1):
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        items = list(ReducedStream(made / "patches", shuffle=True))
        counts.append(len(items))
        seen += [float(item["patches"].sum()) for item in items]
    assert counts == [8, 4]  # of three shards
    everything = [float(item["patches"].sum()) for item in ReducedDataset(made / "patches")]
    assert sorted(seen) == sorted(everything)
