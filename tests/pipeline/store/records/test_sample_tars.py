"""Samples as a tar: what is written is read, and is checked as arrays are."""

import pytest
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.store.errors import DamagedUnitError
from pipeline.store.records.checks import RowDigests, check_records
from pipeline.store.records.forms import SAMPLES, form_at, form_of
from stages.sample_rows import SAMPLE_FIELDS, object_rows

FORM = form_of(SAMPLES)
ENDING = st.sampled_from(["jpg", "json", "cls", "left.npy", "x y", "JPG", "é"])
SAMPLE = st.lists(st.tuples(ENDING, st.binary(max_size=20)), min_size=1, max_size=4,
                  unique_by=lambda member: member[0])  # fmt: skip


def rows(samples):
    return {
        "key": object_rows([f"folder {'ü' * 60}/k{n}" for n in range(len(samples))]),
        "members": object_rows([tuple(sample) for sample in samples]),
    }


def write(path, values, step=1000):
    digests = RowDigests(SAMPLE_FIELDS)
    with FORM.writer(path, SAMPLE_FIELDS) as writer:
        for start in range(0, len(values["key"]), step):
            part = {name: array[start : start + step] for name, array in values.items()}
            digests.update(part)
            writer.append(part)
    return digests


@settings(max_examples=60, deadline=None)
@given(samples=st.lists(SAMPLE, max_size=5), step=st.integers(1, 6))
def test_what_is_written_is_read_whatever_the_pieces(samples, step, tmp_path_factory) -> None:
    path = tmp_path_factory.mktemp("a") / FORM.file
    other = tmp_path_factory.mktemp("b") / FORM.file
    values = rows(samples)
    digests = write(path, values)
    write(other, values, step)
    assert path.read_bytes() == other.read_bytes()
    assert form_at(path) is FORM
    found = FORM.read(path)
    assert found["key"].tolist() == values["key"].tolist()
    assert found["members"].tolist() == values["members"].tolist()
    check_records(path, FORM.read_fields(path), digests)


def test_webdataset_reads_it(tmp_path) -> None:
    path = tmp_path / FORM.file
    write(path, rows([[("jpg", b"a"), ("cls", b"1")], [("jpg", b"b"), ("kept.json", b"{}")]]))
    found = list(webdataset.WebDataset(str(path), shardshuffle=False))
    assert [sample["jpg"] for sample in found] == [b"a", b"b"]
    assert (found[0]["cls"], found[1]["kept.json"]) == (b"1", b"{}")


@pytest.mark.parametrize("change", ["content", "ending", "fewer", "moved"])
def test_other_samples_than_were_given_are_seen_before_a_unit_is_committed(
    change, tmp_path
) -> None:
    path = tmp_path / FORM.file
    given_samples = [[("a", b"1"), ("b", b"2")], [("a", b"3")]]
    written = {
        "content": [[("a", b"1"), ("b", b"9")], [("a", b"3")]],
        "ending": [[("a", b"1"), ("c", b"2")], [("a", b"3")]],
        "fewer": [[("a", b"1")], [("a", b"3")]],
        "moved": [[("a", b"1")], [("a", b"3"), ("b", b"2")]],
    }[change]
    write(path, rows(written))
    digests = write(tmp_path / "other", rows(given_samples))
    with pytest.raises(DamagedUnitError, match="'members' does not read back as written"):
        check_records(path, SAMPLE_FIELDS, digests)


@pytest.mark.parametrize("cut", [1, 513, 1025, 2000])
def test_a_cut_tar_is_damage_and_not_fewer_samples(cut, tmp_path) -> None:
    path = tmp_path / FORM.file
    write(path, {
        "key": object_rows(["a", "b"]),
        "members": object_rows([(("jpg", b"1"),), (("jpg", b"2"),)]),
    })  # fmt: skip
    path.write_bytes(path.read_bytes()[:-cut][: 4 * 512 + 1000 - cut])
    with pytest.raises(DamagedUnitError, match="unreadable samples"):
        FORM.read(path)


def test_another_sha256_than_the_receipt_s_is_damage(tmp_path) -> None:
    path = tmp_path / FORM.file
    write(path, rows([[("jpg", b"1")]]))
    with pytest.raises(DamagedUnitError, match="another sha256"):
        FORM.read(path, None, {"": "0" * 64})
    with pytest.raises(DamagedUnitError, match="no array 'score'"):
        FORM.row_places(path, "score")
