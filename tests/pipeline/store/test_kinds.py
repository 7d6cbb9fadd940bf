"""Every option that takes the output of a stage refuses that of another, and says what it is."""

import pytest
from command_line import one_line_error, run

from pipeline.store.kinds import kind_of


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, photographs, small_mae):
    """Folders by the command that made them, each as small as can be."""
    from conftest import write_tar

    base = tmp_path_factory.mktemp("outputs")
    (base / "shards").mkdir()
    write_tar(base / "shards" / "a.tar", [(f"{n}.jpg", c) for n, c in photographs.items()])
    made = {name: base / name.replace(" ", "-") for name in (
        "score", "select", "train-ranker", "evaluate ranking")}  # fmt: skip
    common = ("--shards", base / "shards", "--out")
    run("score", "--mae", small_mae, "--sampler", "cover", "--crop", "eval", *common, made["score"])
    run("select", "--teacher", made["score"], "--keep-ratio", 0.5, *common, made["select"])
    run("train-ranker", "--cache", made["score"], "--ranker", "vit_tiny", "--epochs", 1,
        *common, made["train-ranker"])  # fmt: skip
    run("evaluate", "ranking", made["select"], made["score"], "--out", made["evaluate ranking"])
    return {**made, "pack": base / "shards"}


OPTIONS = [
    ("--selections", "select", ("evaluate", "patches", "--annotations", "x")),
    ("--teacher", "score", ("select", "--shards", "{pack}", "--out", "{new}")),
    ("--ranker", "train-ranker", ("select", "--shards", "{pack}", "--out", "{new}")),
    ("--mae", "pretrain-mae", ("score", "--shards", "{pack}", "--out", "{new}")),
    ("--cache", "score", ("train-ranker", "--shards", "{pack}", "--out", "{new}")),
    ("--maps", "score", ("train-ranker", "--cache", "{score}", "--shards", "{pack}", "--ranker",
                         "vit_tiny", "--out", "{new}")),
    ("--selections", "select", ("report", "--shards", "{pack}", "--mae", "mae_tiny")),
    ("--teacher", "score", ("report", "--selections", "{select}", "--shards", "{pack}", "--mae",
                            "{mae}")),
    ("--training", "train-ranker", ("report", "--selections", "{select}", "--shards", "{pack}",
                                    "--mae", "{mae}")),
    ("--evaluation", "evaluate patches", ("report", "--selections", "{select}", "--shards",
                                          "{pack}", "--mae", "{mae}")),
    ("--ranking", "evaluate ranking", ("report", "--selections", "{select}", "--shards", "{pack}",
                                       "--mae", "{mae}")),
    ("", "score", ("status",)),
    ("", "score", ("verify",)),
    ("", "score", ("inspect",)),
]  # fmt: skip


@pytest.mark.parametrize("option, wanted, rest", OPTIONS)
def test_the_output_of_another_stage_is_refused_by_name(
    outputs, small_mae, tmp_path, option, wanted, rest
):
    words = {**outputs, "new": tmp_path / "new", "mae": small_mae}
    accepted = {wanted, "select"} if not option else {wanted}
    if option == "--training":
        accepted.add("pretrain-mae")
    for kind in set(outputs) - accepted:
        if (option, kind) in {("--maps", "score")}:
            continue
        given = (option, outputs[kind]) if option else (outputs[kind],)
        arguments = [str(word).format(**words) for word in rest]
        message = one_line_error(*arguments[: 2 if rest[0] == "evaluate" else 1], *given,
                                 *arguments[2 if rest[0] == "evaluate" else 1 :])  # fmt: skip
        assert f"is the output of `{kind}`" in message
        assert f"`ltrp-pipeline {wanted}`" in message
        assert (option or "CACHE") in message
    assert not (tmp_path / "new").exists()


def test_every_output_is_told_apart(outputs, tmp_path):
    for kind, folder in outputs.items():
        assert kind_of(folder) == kind
    assert kind_of(tmp_path) is None
    assert kind_of(tmp_path / "nothing") is None
