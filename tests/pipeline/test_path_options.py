"""Paths as users write them: `~`, loops, far too long, and names that lead elsewhere."""

import resource
import subprocess

import pytest
import yaml
from command_line import PROGRAM, one_line_error, run

from ltrp_core.errors import RequestError
from pipeline.console.address_space import lack_of_address_space


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(tmp_path)
    return folder


def test_a_tilde_is_the_home_in_every_path_option(home, photo_folder, small_mae):
    (home / "mae.safetensors").write_bytes(small_mae.read_bytes())
    (home / "photos").symlink_to(photo_folder)
    run("pack", "~/photos", "--out=~/shards")
    run("score", "--shards=~/shards", "--mae=~/mae.safetensors", "--out=~/cache", "--partitions", 1)
    assert (home / "cache" / "run.json").is_file()
    out, _ = run("verify", "~/cache")
    assert "12 samples = 12 ok" in out
    run("convert", "~/cache", "--to=webdataset", "--out=~/tars")
    assert (home / "tars" / "run.json").is_file()
    assert not (home.parent / "~").exists()


def test_a_tilde_is_the_home_in_a_run_file(home, shards, small_mae):
    (home / "mae.safetensors").write_bytes(small_mae.read_bytes())
    (home / "shards").symlink_to(shards)
    file = home.parent / "run.yaml"
    score = {"mae": "~/mae.safetensors", "partitions": 1, "workers": 0, "out": "~/own"}
    file.write_text(yaml.safe_dump(
        {"out": "~/run", "shards": "~/shards", "stages": {"score": score}}))  # fmt: skip
    run("run", file)
    assert (home / "own" / "run.json").is_file()
    assert (home / "run").is_dir()
    assert not (home.parent / "~").exists()
    _, err = run("run", file)
    assert "score: complete" in err


@pytest.mark.parametrize("name", ["../../x", "/x", "a/b", "..", "a\nb", "", "a b"])
def test_a_stage_of_a_run_file_has_a_name_that_is_a_folder_s(tmp_path, name):
    file = tmp_path / "run.yaml"
    stage = {"command": "score", "mae": "mae_tiny", "shards": "x"}
    file.write_text(yaml.safe_dump({"out": str(tmp_path / "run"), "stages": {name: stage}}))
    message = one_line_error("run", file, "--dry-run")
    assert f"stage {name!r}: a stage's output is a folder of that name" in message


@pytest.mark.parametrize("prefix", ["../x", "/x", "a/b", "..", ""])
def test_shards_are_packed_into_the_folder_that_was_given(prefix, photo_folder, tmp_path):
    out = tmp_path / "deep" / "shards"
    message = one_line_error("pack", photo_folder, "--out", out, "--prefix", prefix)
    assert f"--prefix {prefix!r}: shards are files of --out" in message
    assert list(tmp_path.rglob("*.tar")) == []


@pytest.mark.parametrize("kind", ["loop", "long", "below a file", "zero byte"])
def test_a_path_that_cannot_be_is_one_line(kind, tmp_path, shards, small_mae):
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "file").write_text("x")
    path = {"loop": tmp_path / "loop", "long": "a" * 5000, "below a file": tmp_path / "file" / "x",
            "zero byte": "a\0b"}[kind]  # fmt: skip
    mae = ("--mae", small_mae)
    for arguments in (
        ("status", path),
        ("pack", path),
        ("run", path),
        ("score", "--shards", path, *mae),
        ("score", "--shards", shards, "--partitions", 1, *mae, "--out", path),
        ("report", "--selections", path, "--shards", shards, *mae, "--out", path),
        ("export", path),
    ):
        _, err = run(*arguments, expect=2)
        assert "Traceback" not in err
        last = err.strip().splitlines()[-1]
        assert last.lower().startswith("error: ")


def test_a_report_into_a_loop_of_links_is_one_line(tmp_path):
    from pipeline.report.page import write_report

    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(RequestError, match="a link that leads to itself"):
        write_report(None, tmp_path / "loop")


@pytest.mark.parametrize(
    "options, words",
    [
        (("--key", "astronaut_0"), "--key needs UNIT"),
        (("--key", "astronaut_0", "--png", "a.png"), "--key needs UNIT"),
        (("--png", "a.png"), "say which with UNIT and --key"),
        (("part-0", "--png", "a.png"), "say which with UNIT and --key"),
        (("part-0", "--key", "astronaut_0", "--view", "0"), "--view is for the picture"),
    ],
)
def test_inspect_leaves_nothing_out_of_what_was_asked(options, words, shards, small_mae, tmp_path):
    run("score", "--shards", shards / "part-0.tar", "--mae", small_mae, "--partitions", 1,
        "--out", tmp_path / "cache")  # fmt: skip
    assert words in one_line_error("inspect", tmp_path / "cache", *options)


def test_a_limit_on_the_address_space_is_named_where_torch_cannot_be_loaded():
    limit = 600_000 << 10

    def limited():
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    done = subprocess.run([*PROGRAM, "plan", "--shards", "x", "--mae", "y"], capture_output=True,
                          text=True, preexec_fn=limited, check=False)  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "ulimit -v is 600000 kB" in line


def test_without_a_limit_an_import_error_is_what_it_says():
    assert resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY
    assert lack_of_address_space(ImportError("libtorch.so: failed to map segment")) is None


def test_the_help_does_not_say_that_the_default_sampler_covers_every_patch():
    out, _ = run("score", "--help")
    words = " ".join(out.split())
    assert "as many as cover every patch once" not in words
    assert "of --sampler cover they show every patch, of iid, the default, most" in words
