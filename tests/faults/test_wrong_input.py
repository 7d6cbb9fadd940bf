"""Full disks, damaged files, hostile tars, odd images and paths."""

import io
import pickle
import re
import resource
import shutil
import stat
import subprocess
import tarfile
import zlib

import numpy as np
import pytest
from command_line import one_line_error, run
from faults.conftest import COUNT
from faults.driver import drive, events, fingerprint, units
from PIL import Image

from pipeline.store import open_cache
from pipeline.store.verify import problems


def score(shards, mae, out, *options, expect=0):
    return run("score", "--shards", shards, "--mae", mae, "--out", out, *options, expect=expect)[1]


@pytest.mark.parametrize("point", ["mid_forward", "after_attempt_write", "before_rename"])
def test_a_full_disk_stops_the_run_and_says_so(point, many, small_mae, reference, tmp_path):
    cache = tmp_path / "cache"
    fault = {"point": point, "nth": 3, "action": "full_disk"}
    err = drive(many, small_mae, cache, fault=fault, expect=1)
    assert "No space left on device" in err
    assert f"2 done, 0 already there, 0 failed, {COUNT - 2} not reached" in err
    assert len(open_cache(cache).units) == 2
    score(many, small_mae, cache)
    assert fingerprint(cache) == reference


def test_a_disk_that_is_too_small_is_noticed_before_a_unit_is_scored(
    many, small_mae, reference, tmp_path
):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small file system is not allowed here")
    try:
        err = score(many, small_mae, disk / "cache", expect=1)
        assert "No space left on device: 7 MiB free" in err
        assert units(disk / "cache") == []
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        score(many, small_mae, disk / "cache")
        assert fingerprint(disk / "cache") == reference
    finally:
        subprocess.run(["umount", disk], check=True)


def flip(path, at):
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


DAMAGES = {
    "empty file": ("score/c/0/0/0/0", lambda path: path.write_bytes(b"")),
    "missing file": ("score/c/0/0/0/0", lambda path: path.unlink()),
    "one byte short": ("visible/c/0/0/0/0", lambda path: path.write_bytes(path.read_bytes()[:-1])),
    "flip in the data": ("visible/c/0/0/0/0", lambda path: flip(path, 5)),
    "flip in the index": ("score/c/0/0/0/0", lambda path: flip(path, -8)),
    "cut zarr.json": ("score/zarr.json", lambda path: path.write_bytes(path.read_bytes()[:50])),
    "missing receipt": ("../receipt.json", lambda path: path.unlink()),
    "cut receipt": ("../receipt.json", lambda path: path.write_bytes(path.read_bytes()[:80])),
}


@pytest.fixture(scope="module")
def finished(many, small_mae, tmp_path_factory):
    cache = tmp_path_factory.mktemp("finished") / "cache"
    score(many, small_mae, cache)
    return cache


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_output_is_found_refused_and_made_anew(
    damage, many, small_mae, finished, reference, tmp_path
):
    cache = tmp_path / "cache"
    shutil.copytree(finished, cache)
    victim = units(cache)[4]
    name, spoil = DAMAGES[damage]
    spoil(cache / "units" / victim / "records.zarr" / name)
    out, _ = run("verify", cache, "--deep", "--repair", expect=1)
    assert victim in out
    assert "1 unit(s) moved to quarantine" in out
    assert victim not in open_cache(cache).rows
    err = score(many, small_mae, cache)
    assert f"1 done, {COUNT - 1} already there, 0 failed" in err
    shutil.rmtree(cache / "quarantine")
    assert fingerprint(cache) == reference


def test_training_refuses_damaged_records(many, small_mae, finished, tmp_path):
    cache = tmp_path / "cache"
    shutil.copytree(finished, cache)
    flip(cache / "units" / units(cache)[4] / "records.zarr/score/c/0/0/0/0", 5)
    message = one_line_error(
        "train-ranker", "--cache", cache, "--shards", many, "--out", tmp_path / "ranker",
        "--ranker", "vit_tiny", "--epochs", 1)  # fmt: skip
    assert units(cache)[4] in message
    assert "verify" in message


def bad_tars(folder, photographs, make_tar):
    """Shards that are none, by what their failure must say."""
    good = [(f"{name}.jpg", data) for name, data in list(photographs.items())[:4]]
    whole = folder / "whole"
    make_tar(whole, good)
    raw = whole.read_bytes()
    whole.unlink()
    with_header_flipped = bytearray(raw)
    second = 512 + -(-len(good[0][1]) // 512) * 512
    with_header_flipped[second + 3] ^= 1
    texts = {
        "cut": (raw[: len(raw) // 2], "cut"),
        "flipped": (bytes(with_header_flipped), "damaged|broken|not a whole"),
        "twice": (raw + raw, "two tars|data follow"),
        "zeros": (raw[:second] + bytes(1024) + raw[second:], "data follow|damaged"),
        "empty": (b"", "it is empty"),
        "page": (b"<html>sorry</html>" * 100, "web page"),
        "gz": (zlib.compress(raw, wbits=31)[:2000], "gzip"),
        "blank": (bytes(10240), "no member"),
    }
    for name, (content, _) in texts.items():
        (folder / f"bad-{name}.tar").write_bytes(content)
    return {f"bad-{name}.tar": says for name, (_, says) in texts.items()}


def test_bad_shards_fail_alone_with_a_reason_and_the_others_are_done(
    photographs, make_tar, many, small_mae, tmp_path
):
    folder = tmp_path / "shards"
    shutil.copytree(many, folder)
    reasons = bad_tars(folder, photographs, make_tar)
    locked = folder / "bad-locked.tar"
    locked.write_bytes(b"x")
    locked.chmod(0)
    err = score(folder, small_mae, tmp_path / "cache", expect=1)
    assert f"{COUNT} done, 0 already there, {len(reasons) + 1} failed" in err
    lines = {
        line.split()[1].rstrip(":"): line for line in err.splitlines() if " failed bad" in line
    }
    for name, says in reasons.items():
        assert re.search(says, lines[name]), lines[name]
    clean = tmp_path / "clean"
    score(many, small_mae, clean)
    ours, theirs = open_cache(tmp_path / "cache"), open_cache(clean)
    assert ours.rows == theirs.rows


def test_odd_names_are_accounted_for_and_nothing_is_written_elsewhere(
    photographs, small_mae, tmp_path
):
    good = next(iter(photographs.values()))
    names = ["2.v1.jpg", "./x.jpg", "../../y.jpg", "/abs.jpg", "ünï.jpg", "n" * 300 + ".jpg",
             "BIG.JPG", "noext", ".jpg", "label.cls"]  # fmt: skip
    path = tmp_path / "in" / "odd.tar"
    path.parent.mkdir()
    with tarfile.open(path, "w") as tar:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(good)
            tar.addfile(info, io.BytesIO(good))
        for kind, name in ((tarfile.SYMTYPE, "link.jpg"), (tarfile.LNKTYPE, "hard.jpg"),
                           (tarfile.CHRTYPE, "device.jpg")):  # fmt: skip
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
    before = set(tmp_path.rglob("*"))
    score(path, small_mae, tmp_path / "cache")
    cache = open_cache(tmp_path / "cache")
    (unit,) = cache.units
    assert cache.read(unit)["key"].tolist() == ["2", "x", "ünï", "n" * 300, "BIG"]
    receipt = cache.receipt(unit)
    assert receipt.n_in == len(names) + 3 == receipt.n_ok + receipt.n_bad
    assert receipt.reasons == {"no_image": 2, "no_key": 1, "not_a_file": 3, "unsafe_name": 2}
    others = {p for p in set(tmp_path.rglob("*")) - before if "cache" not in p.parts[-20:]}
    assert all((tmp_path / "cache") in p.parents or p == tmp_path / "cache" for p in others)


def test_a_key_in_two_shards_is_scored_twice_and_refused_in_training(
    photographs, make_tar, small_mae, tmp_path
):
    good = next(iter(photographs.values()))
    folder = tmp_path / "shards"
    folder.mkdir()
    for name in ("a", "b"):
        make_tar(folder / f"{name}.tar", [("same.jpg", good)])
    make_tar(folder / "c.tar", [("same.jpg", good), ("other.jpg", good), ("same.jpg", good)])
    err = score(folder, small_mae, tmp_path / "cache", expect=1)
    assert "2 done, 0 already there, 1 failed" in err
    assert "key 'same' stands twice" in err
    assert "stands in two units" in one_line_error(
        "train-ranker", "--cache", tmp_path / "cache", "--shards", folder / "a.tar",
        "--shards", folder / "b.tar", "--out", tmp_path / "r", "--ranker", "vit_tiny")  # fmt: skip


def png(image, path, **options):
    image.save(path, "PNG", **options)
    return path.read_bytes()


def image_zoo(tmp_path, good):
    """(name, bytes, reason or None if it must decode)."""
    noise = np.random.default_rng(0).integers(0, 256, (60, 80, 3)).astype(np.uint8)
    picture = Image.fromarray(noise)
    path = tmp_path / "zoo"

    def saved(image, kind, **options):
        image.save(path, kind, **options)
        return path.read_bytes()

    bomb = Image.new("L", (20000, 20000))
    lying = bytearray(good)
    start = lying.find(b"\xff\xc0")
    lying[start + 5 : start + 9] = (65000).to_bytes(2, "big") * 2
    alpha = picture.convert("RGBA")
    alpha.putalpha(128)
    return [
        ("gray", saved(picture.convert("L"), "JPEG"), None),
        ("cmyk", saved(picture.convert("CMYK"), "JPEG"), None),
        ("la", saved(picture.convert("LA"), "PNG"), None),
        ("palette", saved(picture.convert("P"), "PNG", transparency=3), None),
        ("rgba", saved(alpha, "PNG"), None),
        ("deep", saved(Image.fromarray(noise[..., 0].astype(np.uint16) * 257), "PNG"), None),
        ("turned", saved(picture, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0"
                         b"\0\x01\0\x06\0\0\0\0\0\0"), None),
        ("animated", saved(picture, "GIF", save_all=True, append_images=[picture]), None),
        ("dot", saved(Image.new("RGB", (1, 1)), "PNG"), None),
        ("line", saved(Image.new("RGB", (1, 10000)), "PNG"), None),
        ("cut", good[: len(good) // 2], "truncated"),
        ("page", b"<html></html>", "unidentified"),
        ("nothing", b"", "empty"),
        ("bomb", saved(bomb, "PNG"), "too_large"),
        ("lying", bytes(lying), "too_large"),
    ]  # fmt: skip


def test_every_kind_of_image_has_its_outcome_and_neighbors_are_as_without_it(
    photographs, make_tar, small_mae, tmp_path
):
    good = list(photographs.values())[:4]
    zoo = image_zoo(tmp_path, good[0])
    plain = [(f"good{i}.jpg", data) for i, data in enumerate(good)]
    mixed = [plain[0], *((f"{name}.png", data) for name, data, _ in zoo), *plain[1:]]
    make_tar(tmp_path / "plain.tar", plain)
    make_tar(tmp_path / "mixed.tar", mixed)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    score(tmp_path / "mixed.tar", small_mae, tmp_path / "a")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500 * 1024
    score(tmp_path / "plain.tar", small_mae, tmp_path / "b")
    ours, theirs = open_cache(tmp_path / "a"), open_cache(tmp_path / "b")
    arrays, alone = ours.read(ours.units[0]), theirs.read(theirs.units[0])
    expected = [key for key, reason in [("good0", None), *((n, r) for n, _, r in zoo)]
                if reason is None] + ["good1", "good2", "good3"]  # fmt: skip
    assert arrays["key"].tolist() == expected
    rows = [expected.index(f"good{i}") for i in range(4)]
    for name in alone:
        assert np.array_equal(arrays[name][rows], alone[name])
    reasons = ours.receipt(ours.units[0]).reasons
    assert sum(reasons.values()) == sum(reason is not None for _, _, reason in zoo)
    assert set(reasons) == {reason for _, _, reason in zoo if reason is not None}


def test_a_shard_without_one_good_image_fails_by_name(make_tar, many, small_mae, tmp_path):
    """Most likely it is another kind of file than is thought, such as ImageNet's tar of tars."""
    folder = tmp_path / "shards"
    shutil.copytree(many, folder)
    make_tar(folder / "bad.tar", [(f"{i}.jpg", b"no image") for i in range(5)])
    make_tar(tmp_path / "class.tar", [("a.JPEG", b"..")])
    make_tar(folder / "nested.tar", [("n01440764.tar", (tmp_path / "class.tar").read_bytes())])
    err = score(folder, small_mae, tmp_path / "cache", expect=1)
    assert f"{COUNT} done, 0 already there, 2 failed" in err
    assert "bad.tar has no image that can be used (5 unidentified); the first: 0: " in err
    assert "'n01440764.tar' is an archive within the shard" in err
    assert list(problems(open_cache(tmp_path / "cache"), deep=True)) == []
    out, _ = run("status", tmp_path / "cache", expect=1)
    assert f"{COUNT} done + 2 failed + 0 pending" in out


def test_bad_images_are_named_with_their_reasons(make_tar, photographs, small_mae, tmp_path):
    bad = [(f"bad{i}.jpg", b"no image") for i in range(5)]
    make_tar(tmp_path / "a.tar", [*bad, *((f"{k}.jpg", v) for k, v in photographs.items())])
    err = score(tmp_path / "a.tar", small_mae, tmp_path / "cache")
    named = "; ".join(f"bad{i} of a.tar: unidentified" for i in range(3))
    assert f"bad images: {named}; and 2 more: errors.parquet of each unit" in err
    out, _ = run("status", tmp_path / "cache")
    assert "images   12 ok, 5 bad (5 unidentified)\n" in out


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_no_code_of_the_data_runs(photographs, make_tar, small_mae, tmp_path):
    trap = tmp_path / "sprung"
    bomb = pickle.dumps(Bomb(trap))
    good = next(iter(photographs.values()))
    kinds = ("pyd", "pickle", "pkl", "pth", "pt", "npy")
    make_tar(tmp_path / "a.tar", [("a.jpg", good), *((f"a.{kind}", bomb) for kind in kinds)])
    score(tmp_path / "a.tar", small_mae, tmp_path / "cache")
    (tmp_path / "weights.pth").write_bytes(bomb)
    wrong = ("score", "--shards", tmp_path / "a.tar", "--out", tmp_path / "other", "--mae")
    assert "weights.pth" in one_line_error(*wrong, tmp_path / "weights.pth")
    message = one_line_error("score", "--shards", f"pipe:touch {trap}", "--mae", small_mae,
                             "--out", tmp_path / "other")  # fmt: skip
    assert "pipe" in message
    assert not trap.exists()
    assert not (tmp_path / "other").exists()


def test_damaged_weights_are_refused_before_any_shard(many, small_mae, tmp_path):
    from safetensors.torch import load_file, save_file

    raw = small_mae.read_bytes()
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(raw[: len(raw) // 2])
    out = tmp_path / "cache"
    assert "cut.safetensors" in one_line_error(
        "score", "--shards", many, "--mae", cut, "--out", out)  # fmt: skip
    assert not out.exists()
    score(many / "part-00.tar", small_mae, out)
    flipped = tmp_path / "flipped.safetensors"
    flipped.write_bytes(raw[:-5] + bytes([raw[-5] ^ 1]) + raw[-4:])
    assert "mae_sha256" in one_line_error(
        "score", "--shards", many, "--mae", flipped, "--out", out)  # fmt: skip
    from safetensors import safe_open

    with safe_open(small_mae, "pt") as file:
        metadata = file.metadata()
    tensors = load_file(small_mae)
    name = next(name for name in tensors if name.endswith("decoder_pred.weight"))
    tensors[name][:] = float("nan")
    save_file(tensors, tmp_path / "nan.safetensors", metadata)
    message = one_line_error("score", "--shards", many, "--mae", tmp_path / "nan.safetensors",
                             "--out", tmp_path / "nan")  # fmt: skip
    assert "not finite" in message
    assert not (tmp_path / "nan").exists()


@pytest.mark.parametrize("name", ["a b", "we#1?x", "{0..3}", "per%cent", "ünïcode"])
def test_paths_may_hold_anything(name, many, small_mae, reference, tmp_path):
    folder = tmp_path / name
    shutil.copytree(many, folder / "in")
    score(folder / "in", small_mae, folder / "cache")
    assert fingerprint(folder / "cache") == reference


@pytest.mark.faults
@pytest.mark.ray
def test_ray_starts_without_a_writable_home_and_with_a_long_tmpdir(
    many, small_mae, reference, tmp_path
):
    home, temporary = tmp_path / "home", tmp_path / ("t" * 120)
    home.mkdir()
    temporary.mkdir()
    home.chmod(stat.S_IRUSR | stat.S_IXUSR)
    drive(many, small_mae, tmp_path / "cache", "--workers", 2,
          env={"HOME": str(home), "TMPDIR": str(temporary)})  # fmt: skip
    assert fingerprint(tmp_path / "cache") == reference
    assert {e["worker"] for e in events(tmp_path / "cache") if e["event"] == "done"}
    assert list(home.iterdir()) == []


@pytest.mark.faults
@pytest.mark.ray
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_the_number_of_workers_and_the_batch_change_no_byte(
    workers, many, small_mae, reference, tmp_path
):
    batch = 3 - workers or 32
    drive(many, small_mae, tmp_path / "cache", "--workers", workers, "--batch-size", batch)
    assert fingerprint(tmp_path / "cache") == reference


@pytest.mark.faults
@pytest.mark.ray
def test_a_shard_that_hangs_is_given_up_and_the_others_are_done(
    many, small_mae, reference, tmp_path
):
    cache = tmp_path / "cache"
    fault = {"point": "mid_forward", "unit": "part-03", "action": "hang"}
    err = drive(many, small_mae, cache, "--workers", 2, "--shard-timeout", 8,
                fault=fault, expect=1)  # fmt: skip
    assert f"{COUNT - 1} done, 0 already there, 1 failed" in err
    assert "longer than 8 s" in err
    score(many, small_mae, cache)
    assert fingerprint(cache) == reference
