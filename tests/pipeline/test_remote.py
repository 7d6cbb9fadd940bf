"""Servers in trouble: tried again where that helps, else one line that has no secret."""

import pytest
from command_line import one_line_error, run
from failing_server import serve
from s3_server import s3_bucket

from pipeline import remote
from pipeline.remote import RemoteError
from pipeline.store.storage import open_storage

SECRET = "w7SentinelOfASecret"


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(remote, "DELAYS_S", (0.0, 0.0))


@pytest.fixture
def tar(shards):
    return (shards / "part-0.tar").read_bytes()


def test_a_shard_is_read_from_a_server_that_fails_now_and_then(tar, small_mae, tmp_path):
    def answer(method, before):
        fails = method == "GET" and before in (0, 2)
        return (500, b"") if fails else (200, tar)

    with serve(answer) as (address, asked):
        _, err = run("score", "--shards", f"{address}/a.tar", "--mae", small_mae,
                     "--out", tmp_path / "cache", "--partitions", 1)  # fmt: skip
    assert "1 done, 0 already there, 0 failed; 4 images ok" in err
    assert asked.count("GET") >= 3


def test_a_server_that_lists_but_does_not_send_is_one_line_without_the_signature(
    tar, small_mae, tmp_path
):
    def answer(method, before):
        return (200, tar) if method == "HEAD" else (500, b"")

    with serve(answer) as (address, _):
        url = f"{address}/a.tar?X-Amz-Credential={SECRET}&api_key={SECRET}"
        _, err = run("score", "--shards", url, "--mae", small_mae, "--out", tmp_path / "cache",
                     expect=1)  # fmt: skip
        out, said = run("doctor", "--shards", url, expect=1)
    assert "Traceback" not in err
    assert SECRET not in err + out + said
    (failed,) = [line for line in err.splitlines() if line.startswith("  failed")]
    assert "the server answered 500" in failed
    for file in (tmp_path / "cache").rglob("*"):
        assert not file.is_file() or SECRET.encode() not in file.read_bytes()


@pytest.mark.parametrize("status", [400, 401, 403])
def test_a_refused_request_names_the_credentials_and_is_not_repeated(status, small_mae, tmp_path):
    with serve(lambda method, before: (status, b"")) as (address, asked):
        message = one_line_error("score", "--shards", f"{address}/a.tar?token={SECRET}",
                                 "--mae", small_mae, "--out", tmp_path / "cache")  # fmt: skip
    assert SECRET not in message
    assert f"the server answered {status}" in message
    assert "credentials are missing, wrong or expired" in message
    assert asked == ["HEAD", "GET"]


def test_expired_credentials_of_an_object_store_are_named(monkeypatch):
    expired = b"<Error><Code>ExpiredToken</Code></Error>"
    with serve(lambda method, before: (400, expired)) as (address, _), s3_bucket() as bucket:
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        for command in (("status",), ("verify",), ("inspect",)):
            message = one_line_error(*command, f"{bucket}/cache")
            assert "credentials are missing, wrong or expired" in message
            assert "no cache" not in message
        with pytest.raises(RemoteError, match="AWS_SESSION_TOKEN"):
            open_storage(f"{bucket}/cache").sizes("units")
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()


def test_an_image_that_a_server_does_not_send_is_not_left_out(photographs, small_mae, tmp_path):
    """An outage is no property of the image: its unit fails and is made by the next run."""
    with s3_bucket() as bucket:
        place = open_storage(f"{bucket}/photos")
        for name, content in photographs.items():
            place.replace(f"{name}.jpg", content)
        import s3fs

        real_open = s3fs.S3FileSystem.open

        def broken(self, path, *args, **kwargs):
            if path.endswith("cat_1.jpg"):
                raise OSError(5, "Internal Server Error")
            return real_open(self, path, *args, **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(s3fs.S3FileSystem, "open", broken)
            _, err = run("score", "--shards", f"{bucket}/photos", "--mae", small_mae,
                         "--out", tmp_path / "cache", "--partitions", 1, "--max-bad", "50%",
                         expect=1)  # fmt: skip
        assert "0 done, 0 already there, 1 failed" in err
        assert "cat_1.jpg" in err
