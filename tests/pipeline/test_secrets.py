"""What runs write, and what submit ships, holds no secret of the environment or of an address."""

from pathlib import Path

import pytest
from command_line import one_line_error, run
from s3_server import s3_bucket

from pipeline.store.run_log import RunLog, read_log
from pipeline.store.storage import open_storage
from pipeline.store.storage.local import LocalStorage
from pipeline.url_secrets import without_secrets
from pipeline.workers.job_code import make_job_folder

SECRET = "w7SentinelOfASecret"
VARIABLES = (
    "AWS_SECRET_ACCESS_KEY",
    "AWS_SESSION_TOKEN",
    "HF_TOKEN",
    "RAY_AUTH_TOKEN",
    "WANDB_API_KEY",
    "MLFLOW_TRACKING_PASSWORD",
)


@pytest.fixture
def bucket(monkeypatch):
    with s3_bucket() as url:
        for name in VARIABLES:
            monkeypatch.setenv(name, f"{SECRET}-{name}")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()
        yield url


def holding(folder: Path) -> list[str]:
    """Names of the files below a folder that hold the secret."""
    return [
        str(file.relative_to(folder))
        for file in sorted(folder.rglob("*"))
        if file.is_file() and SECRET.encode() in file.read_bytes()
    ]


def test_a_whole_run_in_an_object_store_writes_no_secret(shards, small_mae, bucket, tmp_path):
    said = ""
    open_storage(f"{bucket}/shards").upload(shards, "")
    for command in (
        ("score", "--shards", f"{bucket}/shards", "--mae", small_mae, "--out", f"{bucket}/cache"),
        ("train-ranker", "--cache", f"{bucket}/cache", "--shards", f"{bucket}/shards",
         "--ranker", "vit_tiny", "--epochs", 1, "--out", tmp_path / "ranker"),
        ("select", "--shards", f"{bucket}/shards", "--ranker", tmp_path / "ranker",
         "--out", f"{bucket}/selections", "--keep-ratio", 0.5),
        ("status", f"{bucket}/cache", "--json"),
        ("report", "--selections", f"{bucket}/selections", "--shards", f"{bucket}/shards",
         "--mae", small_mae, "--training", tmp_path / "ranker", "--out", tmp_path / "report"),
    ):  # fmt: skip
        said += "".join(run(*command))
    place = open_storage(bucket)
    names = place.sizes("")
    assert any(name.endswith("run.json") for name in names)
    assert any("/log/" in name for name in names)
    assert [name for name in names if SECRET.encode() in place.read(name)] == []
    assert holding(tmp_path) == []
    assert SECRET not in said


@pytest.mark.parametrize(
    "text, shown",
    [
        (f"https://{SECRET}@host/x.tar", "https://***@host/x.tar"),
        (f"http://me:{SECRET}@host/x.tar", "http://***@host/x.tar"),
        (
            f"url=URL('https://h/x?api_key={SECRET}&part=3')",
            "url=URL('https://h/x?api_key=***&part=3')",
        ),
        (
            f"https://h/x?X-Amz-Credential={SECRET}&versionId=7",
            "https://h/x?X-Amz-Credential=***&versionId=7",
        ),
        (
            f"https://h/x?of_a_kind_nobody_knew={SECRET}#a",
            "https://h/x?of_a_kind_nobody_knew=***#a",
        ),
        (
            f"headers: {{'Authorization': 'Bearer {SECRET}', 'a': 'b'}}",
            "headers: {'Authorization': 'Bearer ***', 'a': 'b'}",
        ),
        (
            "abfs://container@account.dfs.core.windows.net/x",
            "abfs://container@account.dfs.core.windows.net/x",
        ),
        ("hf://datasets/me/set@main/x.tar", "hf://datasets/me/set@main/x.tar"),
        ("s3://bucket/a@b/x.tar", "s3://bucket/a@b/x.tar"),
        ("https://h/x?sv=2024&sp=r&prefix=a", "https://h/x?sv=2024&sp=r&prefix=a"),
    ],
)
def test_every_credential_of_an_address_is_masked_and_nothing_else(text, shown):
    assert without_secrets(text) == shown


def test_a_traceback_shows_no_secret(monkeypatch):
    def fails(*_, **__):
        raise TypeError("of this program") from ValueError(f"https://h/x?api_key={SECRET}")

    monkeypatch.setattr("pipeline.commands.caches.open_cache_of", fails)
    _, err = run("status", "x", expect=1)
    assert "TypeError: of this program" in err
    assert "https://h/x?api_key=***" in err
    assert SECRET not in err


@pytest.mark.parametrize(
    "url",
    [
        f"s3://key:{SECRET}@bucket/x",
        f"https://user:{SECRET}@host/x.tar",
        f"https://{SECRET}@host/x.tar",
        f"https://host/x.tar?api_key={SECRET}",
        f"https://host/x.tar?X-Amz-Signature={SECRET}",
        f"https://host/x.tar?sv=2024&sig={SECRET}",
    ],
)
def test_an_address_with_a_password_is_refused_and_not_repeated(url, shards, small_mae, tmp_path):
    refused = [
        one_line_error("status", url),
        one_line_error("submit", "score", "--shards", url, "--mae", "mae_tiny", "--out", "s3://b"),
    ]
    if "@" in url:
        refused.append(
            one_line_error("score", "--shards", url, "--mae", small_mae, "--out", tmp_path / "a")
        )
        refused.append(
            one_line_error("score", "--shards", shards, "--mae", small_mae, "--out", url)
        )
    for message in refused:
        assert SECRET not in message
        assert "credentials come from the environment" in message
    assert list(tmp_path.glob("a*")) == []


def test_the_log_of_a_run_holds_no_signature_of_an_address(tmp_path):
    url = f"https://host/x.tar?sv=2024&sig={SECRET}&X-Amz-Signature={SECRET}"
    log = RunLog(LocalStorage(tmp_path), "run")
    reason = f"{url} cut at byte 7; bring it again"
    log.write("failed", unit="x", worker="host:cpu", attempts=1, reason=reason)
    assert holding(tmp_path) == []
    (event,) = read_log(LocalStorage(tmp_path))
    assert event["reason"].startswith("https://host/x.tar?sv=2024&sig=***")
    assert event["reason"].endswith(" cut at byte 7; bring it again")


def test_a_job_is_not_given_a_secret_by_its_environment():
    for name in (*VARIABLES, "MY_PASSWORD"):
        message = one_line_error(
            "submit", "--env", f"{name}={SECRET}", "status", "s3://bucket/cache")  # fmt: skip
        assert name in message
        assert SECRET not in message


def test_what_is_shipped_is_the_code_and_nothing_that_lies_beside_it(tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text("stages: {}\n")
    folder = tmp_path / "job"
    folder.mkdir()
    make_job_folder(folder, [config])
    assert {entry.name for entry in folder.iterdir()} == {
        "ltrp_core", "stages", "pipeline", "run.yaml"}  # fmt: skip
    shipped = [file.relative_to(folder) for file in folder.rglob("*")]
    assert Path("pipeline/cli.py") in shipped
    assert [file for file in shipped if "__pycache__" in file.parts or file.name[0] == "."] == []
