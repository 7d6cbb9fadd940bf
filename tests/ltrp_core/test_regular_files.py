"""A pipe or a device in place of a file is named; nothing waits for it."""

import os
import signal
import socket
import threading

import pytest
from command_line import one_line_error, run

from ltrp_core.errors import CheckpointError
from ltrp_core.mae import load_mae
from ltrp_core.rankers import load_ranker
from ltrp_core.regular_files import NotRegularFileError, open_regular, read_regular


class Waits(BaseException):
    """No Exception: it must not be taken for an unreadable file."""


@pytest.fixture(autouse=True)
def in_time():
    """Ends a test that waits."""

    def late(number, frame):
        raise Waits

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def pipe(path):
    os.mkfifo(path)
    return path


def device(path):
    path.symlink_to("/dev/zero")
    return path


ODD = pytest.mark.parametrize("make", [pipe, device])


@ODD
def test_only_regular_files_are_opened(make, tmp_path):
    with pytest.raises(NotRegularFileError, match="not a regular file"):
        open_regular(make(tmp_path / "x"))
    with pytest.raises(IsADirectoryError):
        read_regular(tmp_path)
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(NotRegularFileError):
            read_regular(tmp_path / "s")
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link") == b"content"


@ODD
def test_weights_that_are_no_file_are_named(make, tmp_path):
    odd = make(tmp_path / "mae.safetensors")
    with pytest.raises(CheckpointError, match=r"mae\.safetensors.*not a regular file"):
        load_mae(odd)
    (tmp_path / "config.json").write_text('{"ranker": {}}')
    make(tmp_path / "ranker.safetensors")
    with pytest.raises(CheckpointError, match=r"ranker\.safetensors"):
        load_ranker(tmp_path)


@ODD
def test_shards_and_images_that_are_no_files_are_named(
    make, photo_folder, shards, small_mae, tmp_path
):
    score = ("score", "--mae", small_mae, "--out", tmp_path / "cache", "--shards")
    assert "not a regular file" in one_line_error(*score, make(tmp_path / "x.tar"), "--workers", 0)
    make(shards / "odd.tar")
    _, err = run(*score, shards, expect=1)
    assert "3 done, 0 already there, 1 failed" in err
    assert "failed odd.tar" in err
    make(photo_folder / "cat" / "odd.jpg")
    _, err = run(*score[:-3], "--out", tmp_path / "other", "--shards", photo_folder)
    assert "12 images ok, 1 bad" in err
    assert "cat/odd of photos-00000: unreadable" in err


@ODD
def test_a_run_file_and_annotations_that_are_no_files_are_named(make, tmp_path):
    assert "not a regular file" in one_line_error("run", make(tmp_path / "run.yaml"))
    from ltrp_core.errors import RequestError
    from pipeline.annotations import CocoAnnotations

    with pytest.raises(RequestError, match=r"instances\.json.*not a regular file"):
        CocoAnnotations(make(tmp_path / "instances.json"))


def test_one_ctrl_c_would_end_a_thread_that_reads_a_pipe(tmp_path):
    """Opening it on a thread, which no signal reaches, ends by itself."""
    found = []

    def read():
        try:
            read_regular(pipe(tmp_path / "x"))
        except NotRegularFileError as error:
            found.append(error)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert len(found) == 1
