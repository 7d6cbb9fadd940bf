"""Both forms of records: nothing lost, bytes a function of the rows, damage never read as data."""

import io
import json
import tracemalloc

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.errors import DamagedUnitError
from pipeline.store.records import raw_chunks, zarr_records
from pipeline.store.records.checks import RowDigests, check_records
from pipeline.store.records.forms import FORMS, copy_records
from stages.protocols import ArrayField

V, P, N_VISIBLE = 2, 3, 5


def fields(patch=4):
    records = (V, P, N_VISIBLE)
    return {
        "key": ArrayField(dtype="string", shape=(), fill=""),
        "size": ArrayField(dtype="int32", shape=(2,), fill=-1),
        "crop": ArrayField(dtype="float32", shape=(V, 4), fill=float("nan")),
        "flip": ArrayField(dtype="bool", shape=(V,), fill=False),
        "visible": ArrayField(
            dtype="uint8", shape=records, fill=255, delta=True, high=196, ascending=True
        ),
        "score": ArrayField(dtype="float16", shape=records, fill=float("nan")),
        "kept_0.25": ArrayField(dtype="uint16", shape=(7,), fill=65535),
        "pixels": ArrayField(dtype="uint8", shape=(*records, patch, patch, 3), fill=0, raw=True),
    }


def rows(count, patch=4, seed=0):
    rng = np.random.default_rng(seed)
    visible = rng.random((count, V, P, 196)).argsort(-1)[..., :N_VISIBLE]
    return {
        "key": np.array([f"n.01/ünï {i}" for i in range(count)] + [""], dtype=object)[:-1],
        "size": rng.integers(1, 9999, (count, 2)).astype(np.int32),
        "crop": (rng.random((count, V, 4)) * 1000).astype(np.float32),
        "flip": np.zeros((count, V), dtype=bool),
        "visible": np.sort(visible, -1).astype(np.uint8),
        "score": rng.standard_normal((count, V, P, N_VISIBLE)).astype(np.float16),
        "kept_0.25": rng.integers(0, 1024, (count, 7)).astype(np.uint16),
        "pixels": rng.integers(0, 256, (count, V, P, N_VISIBLE, patch, patch, 3)).astype(np.uint8),
    }


def write(path, values, step=10**9, patch=4):
    digests = RowDigests(fields(patch))
    with FORMS[form_name(path)].writer(path, fields(patch)) as writer:
        for start in range(0, len(values["key"]), step):
            part = {name: array[start : start + step] for name, array in values.items()}
            digests.update(part)
            writer.append(part)
    return digests


def form_name(path):
    return next(name for name, form in FORMS.items() if form.file == path.name)


def content(path):
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return {f.relative_to(path.parent): f.read_bytes() for f in files if f.is_file()}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name in ours:
        assert ours[name].dtype == theirs[name].dtype
        assert np.array_equal(ours[name], theirs[name]), name


@pytest.fixture(params=list(FORMS))
def form(request):
    return FORMS[request.param]


@pytest.mark.parametrize("count", [0, 1, 50])
def test_what_is_written_is_read(form, count, tmp_path):
    digests = write(tmp_path / form.file, rows(count))
    assert_same(form.read(tmp_path / form.file, None), rows(count))
    check_records(tmp_path / form.file, fields(), digests)
    assert form.read_fields(tmp_path / form.file).keys() == fields().keys()
    some = form.read(tmp_path / form.file, {"key", "score"})
    assert sorted(some) == ["key", "score"]


@settings(max_examples=10, deadline=None)
@given(count=st.integers(0, 40), step=st.integers(1, 50))
def test_the_bytes_are_a_function_of_the_rows_alone(count, step, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bytes")
    for form in FORMS.values():
        for name, size in (("a", 10**9), ("b", step)):
            (folder / name).mkdir(exist_ok=True)
            write(folder / name / form.file, rows(count), size)
        assert content(folder / "a" / form.file) == content(folder / "b" / form.file)


def test_large_units_are_cut_into_files_and_written_in_little_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_records, "_CHUNK_BYTES", 1 << 18)
    values = rows(400, patch=16)  # 9.2 MB of pixels, in Zarr shards of 2 MB
    path = tmp_path / "records.zarr"
    tracemalloc.start()
    with FORMS["zarr"].writer(path, fields(16)) as writer:
        for start in range(0, 400, 20):
            writer.append({name: array[start : start + 20] for name, array in values.items()})
        peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * (1 << 22)
    assert len([p for p in (path / "pixels/c").rglob("*") if p.is_file()]) == 5
    assert_same(zarr_records.read(path), values)
    blocks = list(zarr_records.read_blocks(path))
    assert len(blocks) > 10
    assert np.array_equal(np.concatenate([block["pixels"] for block in blocks]), values["pixels"])


def test_our_reader_of_pixels_is_zarrs(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_records, "_CHUNK_BYTES", 1 << 16)
    write(tmp_path / "records.zarr", rows(300))
    array = zarr.open_group(tmp_path / "records.zarr", mode="r")["pixels"]
    assert raw_chunks.is_raw(array)
    folder = tmp_path / "records.zarr" / "pixels"
    for part in (slice(None), slice(0, 0), slice(3, 211), slice(299, 300), slice(45, 46)):
        assert np.array_equal(raw_chunks.read_rows(folder, array, part), array[part])


def test_converting_there_and_back_changes_no_byte(form, tmp_path):
    other = next(f for f in FORMS.values() if f is not form)
    write(tmp_path / form.file, rows(30))
    copy_records(tmp_path / form.file, tmp_path / other.file, other)
    (tmp_path / "back").mkdir()
    copy_records(tmp_path / other.file, tmp_path / "back" / form.file, form)
    assert content(tmp_path / form.file) == content(tmp_path / "back" / form.file)


def test_webdataset_reads_the_tar(tmp_path, monkeypatch):
    monkeypatch.setenv("WDS_SECURE", "1")
    import webdataset

    values = rows(12)
    write(tmp_path / "records.tar", values)
    samples = list(webdataset.WebDataset([str(tmp_path / "records.tar")], shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == values["key"].tolist()
    for row, sample in enumerate(samples):
        for name in ("visible", "score", "pixels", "kept_0.25"):
            stored = np.load(io.BytesIO(sample[f"{name}.npy"]), allow_pickle=False)
            assert np.array_equal(stored, values[name][row])
        view = json.loads(sample["view.json"])
        assert view["crop"] == values["crop"][row].tolist()


def flip(raw, at):
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


ZARR_DAMAGE = {
    "missing": lambda f: f.unlink(),
    "empty": lambda f: f.write_bytes(b""),
    "cut": lambda f: f.write_bytes(f.read_bytes()[:-1]),
    "halved": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "flipped at the start": lambda f: f.write_bytes(flip(f.read_bytes(), 3)),
    "flipped in the index": lambda f: f.write_bytes(flip(f.read_bytes(), -6)),
}


@pytest.mark.parametrize("damage", ZARR_DAMAGE)
@pytest.mark.parametrize("name", ["key", "visible", "score", "flip", "pixels"])
def test_a_damaged_array_is_never_read_as_fill_values(name, damage, tmp_path):
    write(tmp_path / "records.zarr", rows(20))
    file = next(p for p in (tmp_path / "records.zarr" / name / "c").rglob("*") if p.is_file())
    ZARR_DAMAGE[damage](file)
    with pytest.raises(DamagedUnitError):
        zarr_records.read(tmp_path / "records.zarr")
    with pytest.raises(DamagedUnitError):
        list(zarr_records.read_blocks(tmp_path / "records.zarr"))


def test_a_cut_tar_is_never_read_as_fewer_samples(tmp_path):
    write(tmp_path / "records.tar", rows(20))
    raw = (tmp_path / "records.tar").read_bytes()
    end = len(raw.rstrip(b"\0"))
    for at in (0, 600, 5000, end // 2 // 512 * 512, end // 2, end - 3, end):
        (tmp_path / "records.tar").write_bytes(raw[:at])
        with pytest.raises(DamagedUnitError):
            FORMS["webdataset"].read(tmp_path / "records.tar", None)


def spoil(name, row, value):
    def change(values):
        values[name][row] = value

    return change


RULES = {
    "visible.*row 3: an index is not below 196": spoil("visible", 3, 199),
    "visible.*row 4: indices do not ascend": spoil("visible", 4, 7),
    "score.*row 2: a value is not finite": spoil("score", 2, np.nan),
    "keys are not unique": spoil("key", 5, "n.01/ünï 12"),
}


@pytest.mark.parametrize("message", RULES)
def test_records_that_break_a_rule_are_not_committed(form, message, tmp_path):
    values = rows(20)
    RULES[message](values)
    digests = write(tmp_path / form.file, values)
    with pytest.raises(DamagedUnitError, match=message):
        check_records(tmp_path / form.file, fields(), digests)


def test_what_does_not_read_back_as_it_was_given_is_not_committed(form, tmp_path):
    write(tmp_path / form.file, rows(20))
    other = rows(20)
    other["score"][7, 0, 0, 0] += 1
    digests = RowDigests(fields())
    digests.update(other)
    with pytest.raises(DamagedUnitError, match="'score' does not read back"):
        check_records(tmp_path / form.file, fields(), digests)
    digests.update(rows(1))
    with pytest.raises(DamagedUnitError, match="20 rows, 21 were written"):
        check_records(tmp_path / form.file, fields(), digests)
