"""`run`: all stages from one file; what is complete is skipped, what changed runs beside it."""

import shutil

import numpy as np
import pytest
import yaml
from command_line import one_line_error, run
from PIL import Image

from pipeline.runs.config import read_config, recipes
from pipeline.store import open_cache


@pytest.fixture
def config(shards, small_mae, tmp_path):
    """A small run of every stage that needs no annotation, as a file."""
    document = {
        "out": str(tmp_path / "run"),
        "shards": str(shards),
        "stages": {
            "score": {"mae": str(small_mae), "views": 2, "workers": 0},
            "teacher": {"mae": str(small_mae), "partitions": 24, "workers": 0},
            "train-ranker": {
                "ranker": "vit_tiny",
                "epochs": 2,
                "batch_size": 6,
                "base-lr": 0.02,
                "checkpoint-every": 0.2,
            },
            "select": {"keep-ratio": [0.25, 0.5], "workers": 0},
            "evaluate-ranking": None,
            "report": {"mae": str(small_mae), "images": 2},
        },
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def states(*arguments, expect=0):
    """Runs `run`; returns the state of every stage it names."""
    out, err = run("run", *arguments, expect=expect)
    lines = [line.split(": ") for line in (out + err).splitlines() if ": run" not in line[:5]]
    found = ("complete", "to do", "left out")
    return {line[0]: line[1] for line in lines if len(line) == 3 and line[1] in found}


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


ALL = ("score", "teacher", "train-ranker", "select", "evaluate-ranking", "report")


@pytest.mark.slow
def test_a_second_run_skips_all_and_a_change_runs_what_depends_on_it(config, tmp_path):
    out = tmp_path / "run"
    assert states(config) == dict.fromkeys(ALL, "to do")
    assert (out / "report" / "index.html").exists()
    assert open_cache(out / "score").run["views"] == 2
    before = times(out)
    assert states(config) == dict.fromkeys(ALL, "complete")
    assert times(out) == before

    change = ("--set", "train-ranker.epochs=1")
    expected = dict.fromkeys(("score", "teacher"), "complete")
    expected |= dict.fromkeys(ALL[2:], "to do")
    assert states(config, *change, "--dry-run") == expected
    assert times(out) == before
    assert states(config, *change) == expected
    assert before.items() <= times(out).items()  # nothing was overwritten or deleted
    # Back again: the first run's stages are still there.
    assert states(config) == dict.fromkeys(ALL, "complete")


@pytest.mark.slow
def test_stages_can_be_run_alone_or_from_one_on(config, tmp_path, shards, photographs, make_tar):
    assert states(config, "--only", "score")["score"] == "to do"
    assert set(states(config, "--dry-run").values()) == {"complete", "to do"}
    _, err = run("run", config, "--only", "train-ranker", expect=2)
    assert "train-ranker needs the output of stage teacher, which is not complete" in err
    assert one_line_error("run", config, "--only", "train").endswith(
        "run.yaml has score, teacher, train-ranker, select, evaluate-ranking, report"
    )
    units = set(open_cache(tmp_path / "run" / "score").units)
    make_tar(shards / "part-9.tar", [("more.jpg", photographs["cat_0"])])
    assert states(config, "--only", "score")["score"] == "to do"
    # A further shard goes into the cache that is there.
    assert units < set(open_cache(tmp_path / "run" / "score").units)
    assert len([p for p in (tmp_path / "run").iterdir() if p.name.startswith("score-")]) == 1


def test_output_that_was_deleted_is_made_again(config, tmp_path):
    only = (config, "--only", "score")
    states(*only)
    shutil.rmtree((tmp_path / "run" / "score").resolve())
    assert states(config, "--dry-run")["score"] == "to do"
    states(*only)
    assert len(open_cache(tmp_path / "run" / "score").units) == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["score.viewz=3"], "run.yaml: stage score: no option 'viewz'; did you mean views?"),
        (["score.views=many"], "run.yaml: stage score: Invalid value for '--views'"),
        (["report.images=0"], "run.yaml: stage report: --images is 0, out of range"),
        (["score.pixels=1"], "run.yaml: stage score: pixels is true or false, not 1"),
        (["score.views=[1, 2]"], "run.yaml: stage score: views takes one value, not 2"),
        (["select.ranker=$rankers"], "stage select: $rankers is no stage that runs before it"),
        (["scor.views=1"], "unknown stage of --set 'scor'; did you mean score?"),
        (["score"], "--set score: write STAGE.OPTION=VALUE"),
        (["sharts=x"], "run.yaml: unknown key 'sharts'; there are out, shards, stages"),
        (["score.mae="], "stage score: Missing option '--mae'"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_run(config, tmp_path, changes, message):
    options = [word for change in changes for word in ("--set", change)]
    assert message in one_line_error("run", config, *options)
    assert not (tmp_path / "run").exists()


def test_a_file_of_another_form_is_refused(tmp_path):
    path = tmp_path / "wrong.yaml"
    assert "cannot be read" in one_line_error("run", path)
    for text, message in (
        ("stages: [score]", "stages must be a mapping"),
        ("stages: {}", "stages is empty; name one of pack, pretrain-mae"),
        ("stages: {scores: {}}", "unknown stage 'scores'; did you mean score?"),
        ("a: [", "is no YAML"),
        ("!!python/object/apply:os.system ['true']", "is no YAML"),
    ):
        path.write_text(text)
        assert message in one_line_error("run", path)


def test_every_recipe_can_be_run(shards, tmp_path):
    """All options of all stages are checked before the first is run."""
    assert recipes() == ["eight_gpus", "laptop", "paper", "tiny", "tiny_l1", "unbiased"]
    asked = ("coco.annotations", "mosaics-top.annotations", "mosaics-other.annotations")
    (tmp_path / "file").write_text("{}")
    given = {
        "unbiased": [
            word
            for name in (*asked, "grad-cam.weights")
            for word in ("--set", f"{name}={tmp_path / 'file'}")
        ]
    }
    for name in recipes():
        more = given.get(name, [])
        out, _ = run("run", name, "--dry-run", "--set", f"shards={shards}", *more)
        commands = [line for line in out.splitlines() if line.startswith("  ltrp-pipeline ")]
        changes = [f"shards={shards}", *more[1::2]]
        assert len(commands) == len(read_config(name, changes).sections) >= 2
        assert all("--out run/" in line for line in commands)


FOLDERS = {
    "eight_gpus": "score-84e3907c train-ranker-d96a605d select-38b4e206",
    "laptop": "pretrain-mae-9ed75292 score-f894ab9d teacher-f79b8faa train-ranker-0b1f9af2 "
    "select-f3825612 report-898aed7c",
    "paper": "score-31ba8bcf train-ranker-5c0199d3 select-bc42b1d7",
    "tiny": "score-98c5c52f train-ranker-3a13c55f",
    "tiny_l1": "pretrain-mae-783b034a score-c46cd37b train-ranker-5af4fd14",
}
"""What commit 50d65c7 called the folders of a run over one shard of 10240 bytes."""


@pytest.mark.parametrize("name", FOLDERS)
def test_what_was_run_before_is_found_by_the_name_that_it_had(
    make_tar, name, tmp_path, monkeypatch
):
    """A new option, or another way to write a default, must not make finished stages run again."""
    monkeypatch.chdir(tmp_path)
    make_tar(tmp_path / "s.tar", [("a.jpg", b"bytes")])
    assert (tmp_path / "s.tar").stat().st_size == 10240
    out, _ = run("run", name, "--dry-run", "--set", "shards=s.tar")
    folders = [line.rpartition("/")[2] for line in out.splitlines() if line[0] != " "]
    assert folders == FOLDERS[name].split()


def test_a_recipe_is_found_beside_the_output_that_has_its_name(shards, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--dry-run", "--set", f"shards={shards}", "--set", "out=tiny")
    first = run("run", "tiny", *options)
    (tmp_path / "tiny").mkdir()
    assert run("run", "tiny", *options) == first


def test_what_a_recipe_leaves_open_is_told_in_one_line():
    assert one_line_error("run", "unbiased", "--dry-run").endswith(
        "recipe unbiased: not given: shards, grad-cam.weights, coco.annotations, "
        "mosaics-top.annotations, mosaics-other.annotations; pass each with --set NAME=VALUE"
    )


def test_what_a_stage_fails_with_ends_the_run(config, shards, tmp_path):
    (shards / "part-1.tar").write_bytes(b"no tar at all")
    found = states(config, expect=1)
    assert found == {"score": "to do"}
    assert states(config, "--dry-run")["score"] == "to do"


def test_an_address_reaches_every_stage_that_works_on_clusters(config):
    out, _ = run("run", config, "--dry-run", "--ray-address", "head:6379")
    lines = [line.split() for line in out.splitlines() if line.startswith("  ltrp-pipeline")]
    given = {line[1] for line in lines if "head:6379" in line}
    assert given == {"score", "train-ranker", "select"}


def draw_masks(folder):
    folder.mkdir()
    mask = np.zeros((150, 180), np.uint8)
    mask[30:90, 60:140] = 255
    for key in ("cat_0", "coffee_1"):
        Image.fromarray(mask).save(folder / f"{key}.png")


def test_every_selector_selects_into_a_folder_of_its_own_and_all_are_compared(shards, tmp_path):
    sizes = {"image-size": 48, "patch-size": 8, "workers": 0}
    document = {
        "out": str(tmp_path / "run"),
        "shards": str(shards),
        "stages": {
            "center": {"command": "select", "baseline": "center", **sizes},
            "random": {"command": "select", "baseline": "random", **sizes},
            "variance": {"command": "select", "selector": "patch-variance", **sizes},
            "evaluate-patches": {
                "selections": ["$center", "$random", "$variance"],
                "label": ["middle", "chance", "texture"],
                "annotations": str(tmp_path / "masks"),
                "bootstrap-draws": 10,
            },
        },
    }
    draw_masks(tmp_path / "masks")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    table, _ = run("run", path)
    folders = {(tmp_path / "run" / name).resolve().name for name in document["stages"]}
    assert len(folders) == 4
    for label in ("middle", "chance", "texture"):
        assert f"{label} minus each reference" in table
    assert set(states(path).values()) == {"complete"}
    assert states(path, "--dry-run", "--set", "random.seed=1") == {
        "center": "complete",
        "random": "to do",
        "variance": "complete",
        "evaluate-patches": "to do",
    }


def test_selections_side_by_side_are_made_resumed_and_compared_by_name(shards, tmp_path):
    sizes = {"image-size": 48, "patch-size": 8, "workers": 0, "keep-ratio": 0.5}
    of_each = {
        "middle": {"selector": "center"},
        "texture": {"selector": "patch-variance"},
    }
    document = {
        "out": str(tmp_path / "run"),
        "shards": str(shards),
        "stages": {
            "select": {**sizes, "each": of_each},
            "evaluate-patches": {"annotations": str(tmp_path / "masks"), "bootstrap-draws": 10},
        },
    }
    draw_masks(tmp_path / "masks")
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    todo = {"middle": "to do", "texture": "to do", "evaluate-patches": "to do"}
    assert states(path, "--dry-run") == todo
    assert states(path, "--only", "texture") == {
        "middle": "left out",
        "texture": "to do",
        "evaluate-patches": "left out",
    }
    assert states(path, "--dry-run") == {**todo, "texture": "complete"}
    # All of them by the name of the section.
    assert states(path, "--only", "select", "--dry-run") == {**todo, "evaluate-patches": "left out"}
    table, _ = run("run", path)
    assert "middle minus each reference" in table
    assert "texture minus each reference" in table
    assert set(states(path).values()) == {"complete"}
    assert states(path, "--from", "select", "--dry-run") == todo
    assert one_line_error("run", path, "--only", "selec").endswith(
        "run.yaml has select, middle, texture, evaluate-patches"
    )
    # A further one is made beside those that are there.
    of_each["chance"] = {"selector": "random"}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    assert states(path, "--dry-run") == {
        "middle": "complete",
        "texture": "complete",
        "chance": "to do",
        "evaluate-patches": "to do",
    }
    assert states(path, "--set", "texture.homogeneous=0", "--dry-run")["middle"] == "complete"
