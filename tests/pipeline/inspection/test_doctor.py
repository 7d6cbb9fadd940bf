"""`doctor`: what is wrong with a machine is named, with a remedy, and nothing else is."""

import json
import os

import pytest
from command_line import run
from s3_server import s3_bucket

from pipeline.inspection import doctor
from pipeline.store.storage.objects import ObjectStorage


def findings(*arguments, expect=0):
    """Runs the command; returns check -> (state, text, remedy)."""
    out, _ = run("doctor", "--json", *arguments, expect=expect)
    rows = [json.loads(line) for line in out.splitlines()]
    return {row["check"]: (row["state"], row["text"], row["remedy"]) for row in rows}


def test_a_machine_that_can_run_the_tests_is_not_broken(tmp_path):
    found = findings("--out", tmp_path, "--mae", "mae_tiny", "--ranker", "ranker_tiny")
    assert "broken" not in {state for state, *_ in found.values()}
    assert "torch" in found["packages"][1]
    assert "CPU core" in found["devices"][1]
    assert found["weights"][1].startswith("mae_tiny: 4.6 million parameters")
    assert "vit_tiny, sparse" in found["ranker"][1]


def test_what_is_broken_is_named_and_ends_with_1(tmp_path, make_tar):
    (tmp_path / "file").write_text("")
    make_tar(tmp_path / "empty.tar", [])
    found = findings(
        *("--out", tmp_path / "file", "--mae", "mae_base", "--ranker", tmp_path),
        *("--shards", tmp_path / "empty.tar", "--ray-address", "127.0.0.1:notaport"),
        expect=1,
    )
    assert found["output"][0] == "broken"
    assert "mae_visualize_vit_base.pth" in found["weights"][1]
    assert "config.json is missing" in found["ranker"][1]
    assert found["shards"][0] == "broken"
    assert found["ray"][0] == "broken"
    assert found["python"][0] == found["packages"][0] == "ok"


def test_an_output_folder_that_is_not_there_yet_counts_as_the_one_it_will_be_made_in(tmp_path):
    assert str(tmp_path) in findings("--out", tmp_path / "a" / "b")["output"][1]
    assert not (tmp_path / "a").exists()


def test_an_old_package_is_named_with_its_bound(monkeypatch):
    real = doctor.metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "0.9" if name == "timm" else real(name)
    )
    state, text, remedy = findings(expect=1)["packages"]
    assert state == "broken"
    assert "timm>=1.0.15 (found 0.9)" in text
    assert "pip install --upgrade" in remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_a_home_that_cannot_be_written_to_has_a_remedy(tmp_path, monkeypatch):
    tmp_path.chmod(0o500)
    monkeypatch.setenv("HOME", str(tmp_path))
    state, _, remedy = findings()["home"]
    assert state == "poor"
    assert "HF_HOME" in remedy


def test_a_home_that_is_not_there_has_a_remedy(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    assert findings()["home"][0] == "poor"


def test_an_object_store_is_timed_and_its_commits_are_tried():
    with s3_bucket() as url:
        state, text, _ = findings("--out", f"{url}/cache")["object store"]
        assert state in ("ok", "poor")
        assert "MB/s up" in text
        assert "commits are safe" in text
        import s3fs

        # Other tests use the server, too, and another client may remember a listing.
        left = s3fs.S3FileSystem(skip_instance_cache=True).find("bucket/cache", refresh=True)
        assert left == [], "the probe was left behind"


def test_an_object_store_that_is_not_there_is_broken():
    with s3_bucket():
        state, text, remedy = findings("--out", "s3://other/cache", expect=1)["object store"]
    assert state == "broken"
    assert "s3://other/cache" in text
    assert "AWS_ENDPOINT_URL" in remedy


def test_a_store_that_overwrites_commits_is_broken(monkeypatch):
    monkeypatch.setattr(ObjectStorage, "create", lambda self, name, data: True)
    state, text, _ = findings("--out", "memory://cache", expect=1)["object store"]
    assert state == "broken"
    assert "written over another" in text


def test_the_words_for_people_have_the_remedy_below(tmp_path):
    out, _ = run("doctor", "--mae", "mae_base", "--out", tmp_path, expect=1)
    assert "BROKEN  weights" in out
    assert "ok      python" in out
