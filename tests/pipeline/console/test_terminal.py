"""What reaches a terminal: names of other people's data cannot act on it, nor show a secret."""

import logging
import warnings

import pytest
from command_line import one_line_error, run

from pipeline.console.terminal import guard_messages, printable, say

KEY = "k\x1b[2J\nforged $\\frac{x$"
HOSTILE = "a\x1b[2J\x9b31m\u202eb\nerror: forged\r\x07\udcff"


@pytest.fixture
def hostile_cache(make_tar, photographs, small_mae, tmp_path):
    """A cache of a shard whose key holds an escape sequence and a line break."""
    shards = tmp_path / "hostile"
    shards.mkdir()
    content = next(iter(photographs.values()))
    make_tar(
        shards / "a.tar", [("k\x1b[2J\nforged $\\frac{x$.jpg", content), ("no\x1b[1m.jpg", b"x")]
    )
    run("score", "--shards", shards, "--mae", small_mae, "--out", tmp_path / "cache",
        "--partitions", 2, "--max-bad", "50%")  # fmt: skip
    return tmp_path / "cache", shards


def is_harmless(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


def test_what_is_not_printable_is_escaped():
    assert printable(HOSTILE) == (
        "a\\x1b[2J\\x9b31m\\u202eb\\nerror: forged\\r\\x07\\udcff")  # fmt: skip
    assert printable("Füße 图片 é") == "Füße 图片 é"


def test_a_key_cannot_act_on_the_terminal(hostile_cache):
    cache, _ = hostile_cache
    for arguments in (
        (cache,),
        (cache, "a"),
        (cache, "a", "--key", KEY),
        (cache, "a", "--key", "no\x1b[1m"),
    ):
        out, err = run("inspect", *arguments)
        assert is_harmless(out)
        assert is_harmless(err)
        assert not any(line.startswith("forged") for line in out.splitlines())
    assert "k\\x1b[2J\\nforged" in run("inspect", cache, "a", "--key", KEY)[0]
    out, _ = run("status", cache, "--shards")
    assert is_harmless(out)


def test_a_key_is_no_formula_in_a_picture(hostile_cache, tmp_path):
    cache, shards = hostile_cache
    png = tmp_path / "a.png"
    run("inspect", cache, "a", "--key", KEY, "--shards", shards,
        "--png", png)  # fmt: skip
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("arguments", [("status", HOSTILE), ("pack", HOSTILE), ("run", HOSTILE)])
def test_what_was_typed_cannot_act_on_the_terminal_either(arguments):
    message = one_line_error(*[word.replace("\udcff", "") for word in arguments])
    assert message.isprintable()


def test_wrong_use_is_told_without_control_characters():
    _, err = run(
        "score", "--views", "\x1b[2J\nError: forged", "--mae", "x", "--shards", "x", expect=2
    )
    assert is_harmless(err)
    assert not any(line.startswith("Error: forged") for line in err.splitlines())


def test_warnings_and_logs_go_the_same_way(capsys, monkeypatch):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    monkeypatch.setattr(logging.lastResort, "formatter", None)
    guard_messages()
    # What Python prints of a warning; within pytest it is recorded instead.
    text = "see \x1b[2J https://host/x?api_key=w7Secret"
    warned = warnings.formatwarning(UserWarning(text), UserWarning, "a.py", 1, "")
    assert "see \\x1b[2J https://host/x?api_key=***" in warned
    record = logging.LogRecord("x", logging.ERROR, "", 0, "bad \x1b[2J name", (), None)
    logging.lastResort.handle(record)
    said = capsys.readouterr().err
    assert "bad \\x1b[2J name" in said


def test_a_stream_of_another_encoding_ends_no_command(capsys, monkeypatch):
    import io
    import sys

    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    say("Füße")
    assert stream.buffer.getvalue() == b"F\\xfc\\xdfe\n"
