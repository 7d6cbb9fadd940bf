import signal
import subprocess
import sys

import pytest
from command_line import run

from pipeline.console.signals import ignores_interrupts

WORK = """
import signal, sys
from pipeline.console.progress import open_progress
from pipeline.console.signals import interrupt_on_signals
interrupt_on_signals()
open_progress()
try:
    for number in map(int, sys.argv[1:]):
        signal.raise_signal(number)
        print("went on")
except KeyboardInterrupt:
    sys.exit(130)
"""


def ended(disposition, *numbers):
    """Runs a command that is sent some signals, started with SIGINT as given."""
    return subprocess.run(
        [sys.executable, "-c", WORK, *map(str, numbers)],
        preexec_fn=lambda: signal.signal(signal.SIGINT, disposition),
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_ends_a_command(number):
    done = ended(signal.SIG_DFL, number)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


def test_a_command_in_the_background_is_ended_by_sigterm_alone_and_says_so():
    done = ended(signal.SIG_IGN, signal.SIGINT, signal.SIGINT, signal.SIGTERM)
    assert done.returncode == 130
    assert done.stdout == "went on\n" * 2
    assert "Ctrl-C does not end this command, SIGTERM" in done.stderr


def test_a_stage_in_the_background_leaves_an_ignored_sigint_alone(photo_folder, tmp_path):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        _, err = run("pack", photo_folder, "--out", tmp_path / "shards")
        assert ignores_interrupts()
    finally:
        signal.signal(signal.SIGINT, before)
    assert err.count("note: SIGINT is ignored") == 1
