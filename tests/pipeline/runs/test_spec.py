"""The table of stages, and the commands that are said to come next: they can be pasted."""

import shlex
import subprocess
import sys

import click
import pytest

from pipeline.cli import COMMANDS
from pipeline.runs.spec import STAGES, load, stage
from stages.options import is_absent

BY_NAME = [spec.name for spec in STAGES]


@pytest.mark.parametrize("name", BY_NAME)
def test_a_stage_is_what_its_row_says(name) -> None:
    spec = stage(name)
    command = load(spec.command)
    assert isinstance(command, click.Command)
    assert spec.typed[0] in COMMANDS
    options = {param.name for param in command.params}
    for config in spec.config_types():
        assert set(config.__dataclass_fields__) <= options, (
            "every option of a config is one of the command"
        )
    assert {option.replace("-", "_") for option in spec.fed_by} <= options
    several = {param.name for param in command.params if param.multiple}
    assert spec.takes_several == set(spec.fed_by) & several
    assert ("selections" not in spec.takes_several) or "label" in options
    assert ("shards" in options) == spec.on_shards
    earlier = [*BY_NAME[: BY_NAME.index(name)], "teacher"]
    for references in spec.fed_by.values():
        assert all(text[1:].split("/")[0] in earlier for text in references)


CASES = [
    ("pack", {}, ["score", "--shards", "/o", "--mae", "mae_tiny", "--out", "cache"]),
    ("pretrain-mae", {"shards": ("a b",)}, ["score", "--shards", "a b", "--mae", "/o"]),
    ("score", {"shards": ("s",), "sampler": "iid", "crop": "train"}, ["train-ranker", "--cache"]),
    (
        "score",
        {"shards": ("s",), "sampler": "cover", "crop": "resize"},
        ["select", "--shards", "s"],
    ),
    ("train-ranker", {"shards": ("s", "t")}, ["select", "--shards", "s", "--shards", "t"]),
    ("select", {"shards": ("s",), "ranker": "ranker_tiny"}, ["report", "--selections", "/o"]),
    ("select", {"shards": ("s",), "ranker": ""}, ["verify", "/o", "--deep"]),
    ("reduce", {}, ["verify", "/o", "--deep"]),
    (
        "train-classifier",
        {"shards": ("s",), "selections": "a", "validation_shards": ("v",)},
        ["evaluate", "images", "--selections", "a", "--shards", "v", "--frozen", "/o"],
    ),
]


@pytest.mark.parametrize(("name", "options", "words"), CASES)
def test_what_comes_next_is_a_whole_command(name, options, words) -> None:
    line = shlex.split(stage(name).next_step(options, "/o"))
    assert line[: len(words) + 1] == ["ltrp-pipeline", *words]
    assert not any(word in ("...", "WEIGHTS") for word in line)
    # It is parsed as it stands: no option is missing, none is unknown.
    command = load(next(COMMANDS[word][0] for word in line[1:2]))
    command.make_context(line[1], line[2:])


def test_where_the_shards_are_not_known_nothing_is_said() -> None:
    assert stage("train-ranker").next_step({"shards": ()}, "/o") == ""
    assert stage("report").next_step({}, "/o") == ""
    assert stage("train-classifier").next_step({"shards": ("s",), "selections": ""}, "/o") == ""


def test_the_table_is_read_without_torch() -> None:
    program = "import sys, pipeline.runs.spec, pipeline.cli; print('torch' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_an_option_is_absent_at_the_value_it_had_before_it_was_there() -> None:
    import dataclasses

    from stages.options import identity, option

    @dataclasses.dataclass(frozen=True)
    class Config:
        old: int = option(1, help="")
        new: str = option("better", absent="as before", help="")

    assert identity(Config()) == {"old": 1, "new": "better"}
    assert identity(Config(new="as before")) == {"old": 1}
    assert is_absent(dataclasses.fields(Config)[1], "as before")
