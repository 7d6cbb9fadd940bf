"""Runs the program as a user does, in this process."""

import contextlib
import io
import signal
import sys
from unittest import mock

import pytest

from pipeline.cli import main

PROGRAM = [sys.executable, "-m", "pipeline.cli"]


def run(*arguments, expect=0):
    """Runs the program's own entry point in this process; returns (stdout, stderr).

    Without Ray unless `--workers` is given: it takes seconds to start.
    """
    if arguments[0] in ("score", "select") and not {"--workers", "--help"} & set(arguments):
        arguments = (*arguments, "--workers", 0)
    out, err = io.StringIO(), io.StringIO()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        with (
            mock.patch.object(sys, "argv", ["ltrp-pipeline", *map(str, arguments)]),
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main()
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert expect is None or ended.value.code == expect, err.getvalue()
    return out.getvalue(), err.getvalue()


def one_line_error(*arguments):
    """Runs the program with wrong input; returns its one line of complaint."""
    out, err = run(*arguments, expect=2)
    lines = [line for line in err.splitlines() if not line.startswith("{")]
    assert out == ""
    assert len(lines) == 1, err
    assert lines[0].startswith("error: ")
    return lines[0]
