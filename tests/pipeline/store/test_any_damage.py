"""Any file of a finished cache, damaged anywhere: named with its unit, the others stay sound."""

import random

import pytest
from command_line import run
from conftest import write_tar
from faults.driver import write_shards
from scored_caches import scored

from ltrp_core.errors import RequestError
from pipeline.inputs import find_shards
from pipeline.inspection.status import format_status, read_status
from pipeline.store import open_cache
from pipeline.store.storage import open_storage
from pipeline.store.verify import problems


def flipped(raw, rng):
    at = rng.randrange(len(raw))
    return raw[:at] + bytes([raw[at] ^ (1 << rng.randrange(8))]) + raw[at + 1 :]


def cut(raw, rng):
    return raw[: rng.randrange(len(raw))]


def replaced(raw, rng):
    at = rng.randrange(len(raw))
    return raw[:at] + rng.choice([b"\0" * 9, b"[" * 90_000, b"1" * 400, b"null"]) + raw[at + 9 :]


DAMAGES = (flipped, cut, replaced)


@pytest.fixture(scope="module", params=["zarr", "webdataset", "zarr in an object store"])
def cache(request, photographs, small_mae, tmp_path_factory):
    """A finished cache of two small units, one of which has a bad image."""
    folder = tmp_path_factory.mktemp("damage")
    shards = write_shards(folder / "shards", photographs, write_tar, count=1, images=2)
    bad = [("good.jpg", next(iter(photographs.values()))), ("bad.jpg", b"no image")]
    write_tar(shards / "part-bad.tar", bad)
    remote = request.param.endswith("store")
    out = f"memory://damage-{folder.name}" if remote else folder / "cache"
    store = request.param.split(" ")[0]
    return scored(out, find_shards([str(shards)]), small_mae, store=store, pixels=True).storage


def put(place, name, raw):
    place.remove(name)
    place.replace(name, raw)


def read_all(url):
    """What training, evaluation and the report read."""
    opened = open_cache(url)
    for unit in opened.units:
        opened.read(unit)
        opened.errors(unit)


def refusal(url):
    """What reading everything says, or nothing."""
    try:
        read_all(url)
    except RequestError as error:
        return str(error)
    return ""


def test_damage_anywhere_in_a_unit_is_named_and_the_other_unit_is_sound(cache):
    units = open_cache(cache.url).units
    names = [f"units/{units[0]}/{name}" for name in cache.sizes(f"units/{units[0]}")]
    names += [name for name in (f"units/{units[1]}/{n}" for n in cache.sizes(f"units/{units[1]}"))
              if name.endswith(("errors.parquet", "receipt.json"))]  # fmt: skip
    for number, name in enumerate(names):
        raw, unit = cache.read(name), name.split("/")[1]
        (other,) = set(units) - {unit}
        rng = random.Random(name)
        # All kinds where there is text to parse, one of them where a checksum covers the file.
        kinds = DAMAGES if name.endswith((".json", ".parquet")) else [DAMAGES[number % 3]]
        for spoil in kinds:
            put(cache, name, spoil(raw, rng))
            found = list(problems(open_cache(cache.url), deep=True))
            said = refusal(cache.url)
            put(cache, name, raw)
            assert {fault.unit for fault in found if fault.unit} == {unit}, (name, spoil)
            assert other not in " ".join(fault.what for fault in found)
            assert said == "" or unit in said
    assert list(problems(open_cache(cache.url), deep=True)) == []


@pytest.mark.parametrize("name", ["manifest.parquet", "log"])
def test_damage_beside_the_units_is_no_traceback_and_no_damaged_unit(cache, name):
    path = f"log/{cache.names('log')[0]}" if name == "log" else name
    raw, rng = cache.read(path), random.Random(name)
    for spoil in DAMAGES * 2:
        put(cache, path, spoil(raw, rng))
        opened = open_cache(cache.url)
        found = [fault.what for fault in problems(opened)]
        assert (name in " ".join(found)) == (name != "log")
        status = read_status(opened)
        assert (status.n_ok, status.bytes) == (3, sum(row.bytes for row in opened.rows.values()))
        assert format_status(status)
        assert refusal(cache.url) == "" or "manifest.parquet lists it" in refusal(cache.url)
        put(cache, path, raw)


def test_damage_to_run_json_is_refused_or_changes_nothing(cache):
    raw, rng = cache.read("run.json"), random.Random("run")
    run = open_cache(cache.url).run
    for spoil in DAMAGES * 8:
        put(cache, "run.json", spoil(raw, rng))
        said = refusal(cache.url)
        assert cache.url in said if said else open_cache(cache.url).run == run
        put(cache, "run.json", raw)


def test_one_bit_of_a_zarr_json_is_named_in_one_line_and_both_units_are_looked_at(
    photographs, small_mae, tmp_path
):
    shards = write_shards(tmp_path / "shards", photographs, write_tar, count=3, images=2)
    cache = scored(tmp_path / "cache", find_shards([str(shards)]), small_mae).storage
    units = open_cache(cache.url).units
    for unit in units[:2]:
        name = f"units/{unit}/records.zarr/score/zarr.json"
        raw = cache.read(name)
        at = raw.index(b"shape") - 1  # a quotation mark
        cache.replace(name, raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :])
    for options in ((), ("--deep",)):
        out, err = run("verify", cache.url, *options, expect=1)
        assert "2 faults" in out
        assert "1 complete units, 2 samples" in out
        assert all(unit in out for unit in units[:2])
        assert units[2] not in out
        assert "Traceback" not in err
    for command in (("inspect", cache.url, units[0]),
                    ("train-ranker", "--cache", cache.url, "--shards", shards, "--out",
                     tmp_path / "ranker", "--ranker", "vit_tiny", "--epochs", 1)):  # fmt: skip
        _, err = run(*command, expect=2)
        assert units[0] in err


def test_a_changed_run_json_does_not_make_every_unit_one_of_another_run(cache):
    raw = cache.read("run.json")
    put(cache, "run.json", raw.replace(b'"seed": 0', b'"seed": 1'))
    try:
        out, err = run("verify", cache.url, "--repair", expect=2)
    finally:
        put(cache, "run.json", raw)
    assert out == ""
    assert "run.json is damaged: its identity is not that of its run_id" in err
    assert len(open_storage(cache.url).names("units")) == 2
