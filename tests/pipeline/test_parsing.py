"""Damaged files of every kind are one error that names the file."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from command_line import one_line_error

from ltrp_core.errors import CheckpointError, DamagedFileError, RequestError
from ltrp_core.rankers import read_config
from pipeline.annotations.coco import CocoAnnotations
from pipeline.parsing import parse_json, parse_json_object, parse_parquet, parse_yaml
from pipeline.runs.config import read_config as read_recipe

DAMAGED_JSON = {
    "ninety thousand brackets": b"[" * 90_000,
    "as many that close": b"[" * 90_000 + b"]" * 90_000,
    "four hundred digits": b'{"x": ' + b"1" * 400 + b"}",
    "a million digits": b'{"x": ' + b"1" * 1_000_000 + b"}",
    "sixty-five bits": b'{"x": 36893488147419103232}',
    "cut": b'{"x": ',
    "no text": b"\xff\xfe\x00",
    "nothing": b"",
}


@pytest.mark.parametrize("damage", DAMAGED_JSON)
def test_json_that_does_not_parse_is_one_error_with_its_name(damage):
    with pytest.raises(DamagedFileError, match=r"there\.json is not JSON"):
        parse_json(DAMAGED_JSON[damage], "there.json")


def test_json_that_is_whole_is_what_python_reads():
    text = '{"a": [1, -9223372036854775808, 18446744073709551615, 0.1234567890123456789012, "1%s"]}'
    text %= "0" * 60
    assert parse_json(text, "x") == parse_json(text.encode(), "x") == json.loads(text)
    with pytest.raises(DamagedFileError, match="x holds a JSON list, not an object"):
        parse_json_object("[]", "x")


@pytest.mark.parametrize("damage", ["ninety thousand brackets", "four hundred digits", "cut"])
def test_a_rankers_config_and_annotations_that_do_not_parse_are_named(damage, tmp_path):
    (tmp_path / "config.json").write_bytes(DAMAGED_JSON[damage])
    with pytest.raises(CheckpointError, match=r"config\.json is not JSON"):
        read_config(tmp_path)
    (tmp_path / "instances.json").write_bytes(DAMAGED_JSON[damage])
    with pytest.raises(RequestError, match=r"instances\.json"):
        CocoAnnotations(tmp_path / "instances.json", shape="boxes")


@pytest.mark.parametrize("text", ["[" * 5_000, "a: 2001-02-31", "a: &b [*b", "? {}\n: 1", "\0"])
def test_yaml_that_does_not_parse_is_one_error_with_its_name(text, tmp_path):
    with pytest.raises(RequestError, match=r"run\.yaml is no YAML"):
        parse_yaml(text, "run.yaml")
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(RequestError, match=r"run\.yaml is no YAML"):
        read_recipe(str(path))


def test_parquet_that_is_damaged_anywhere_is_one_error_with_its_name(tmp_path):
    table = pa.table({"key": ["a", "b"] * 50, "n": list(range(100))})
    pq.write_table(table, tmp_path / "t.parquet", write_page_checksum=True)
    raw = (tmp_path / "t.parquet").read_bytes()
    assert parse_parquet(raw, "t").equals(table)
    for at in range(0, len(raw), 7):
        changed = raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]
        for damaged in (changed, raw[:at]):
            try:
                found = parse_parquet(damaged, "t.parquet", schema=table.schema)
            except DamagedFileError as error:
                message = str(error)
            else:
                message, same = "t.parquet", found.schema.equals(table.schema)
                assert same
            assert "t.parquet" in message
    with pytest.raises(DamagedFileError, match="there is no column m"):
        parse_parquet(raw, "t", columns=["m"])


def test_a_folder_in_the_path_is_no_column(tmp_path):
    folder = tmp_path / "fold=1"
    folder.mkdir()
    pq.write_table(pa.table({"n": [1]}), folder / "t.parquet")
    assert parse_parquet(folder / "t.parquet", "t").column_names == ["n"]


def test_a_damaged_evaluation_is_named_in_one_line(tmp_path):
    (tmp_path / "agreement.parquet").write_bytes(b"PAR1 and no more")
    from pipeline.evaluation.ranking import read_tables

    with pytest.raises(RequestError, match="is no --out folder of `evaluate ranking`"):
        read_tables(tmp_path)
    assert "is the output of `evaluate ranking`" in one_line_error("status", tmp_path)
