"""Several stages of one command side by side, under one name in a run file."""

import pytest
import yaml

from ltrp_core.errors import RequestError
from pipeline.runs.config import read_config

SELECT = {
    "keep_ratio": [0.25, 0.5],
    "each": {
        "learned": {"ranker": "ranker_tiny"},
        "middle": {"selector": "center", "keep_ratio": 0.75},
        "noise": {"selector": "random"},
    },
}


@pytest.fixture
def read(tmp_path):
    """Reads a run of some stages, with some changes; returns its sections by name."""

    def of(stages, *changes, **top):
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump({"shards": "s.tar", **top, "stages": stages}))
        return {section.name: section for section in read_config(str(path), changes).sections}

    return of


def test_each_is_a_stage_with_what_all_share_and_what_it_says_itself(read) -> None:
    found = read({"select": SELECT})
    assert list(found) == ["learned", "middle", "noise"]
    assert {section.command for section in found.values()} == {"select"}
    ratios = [section.options["keep-ratio"] for section in found.values()]
    assert ratios == [[0.25, 0.5], 0.75, [0.25, 0.5]]
    assert found["learned"].options["ranker"] == "ranker_tiny"
    assert "ranker" not in found["middle"].options


def test_what_takes_selections_gets_all_of_them_by_their_names(read) -> None:
    stages = {
        "select": SELECT,
        "evaluate-patches": {"annotations": "a.json"},
        "evaluate-ranking": {"second": "c"},
        "report": {"mae": "mae_tiny", "label": ["a", "b", "c"]},
    }
    found = read(stages)
    everything = ["$learned", "$middle", "$noise"]
    assert found["evaluate-patches"].options["selections"] == everything
    assert found["evaluate-patches"].options["label"] == ["learned", "middle", "noise"]
    assert found["report"].options["selections"] == everything
    assert found["report"].options["label"] == ["a", "b", "c"]
    # One takes one only: the first.
    assert found["evaluate-ranking"].options["first"] == "$learned"
    assert found["report"].options["evaluation"] == "$evaluate-patches"


def test_all_of_a_section_can_be_named_among_others(read) -> None:
    stages = {
        "select": SELECT,
        "more": {"command": "select", "each": {"border": {"selector": "border"}}},
        "alone": {"command": "select", "selector": "patch-variance"},
        "evaluate-patches": {"selections": ["$alone", "$select", "$border"], "annotations": "a"},
    }
    evaluated = read(stages)["evaluate-patches"]
    assert evaluated.options["selections"] == ["$alone", "$learned", "$middle", "$noise", "$border"]
    assert evaluated.options["label"] == ["alone", "learned", "middle", "noise", "border"]
    assert evaluated.sources == ["alone", "learned", "middle", "noise", "border"]


def test_one_selection_has_the_label_that_it_had(read) -> None:
    stages = {"select": {"selector": "center"}, "evaluate-patches": {"annotations": "a"}}
    found = read(stages)["evaluate-patches"]
    assert found.options["selections"] == ["$select"]
    assert "label" not in found.options


def test_several_teachers_are_teachers(read) -> None:
    stages = {"teacher": {"mae": "mae_tiny", "each": {"l1": {}, "new": {"metric": "surprise"}}}}
    for section in read(stages).values():
        assert (section.command, section.options["sampler"]) == ("score", "cover")


def test_a_change_is_of_all_or_of_one(read) -> None:
    found = read({"select": SELECT}, "select.keep-ratio=0.1", "noise.seed=3")
    assert [s.options["keep-ratio"] for s in found.values()] == [0.1, 0.75, 0.1]
    assert [s.options.get("seed") for s in found.values()] == [None, None, 3]


def test_what_is_left_to_who_runs_it_is_told_at_once(read) -> None:
    stages = {
        "teacher": {"mae": "???"},
        "select": {"each": {"map": {"selector": "border-features", "weights": "???"}}},
    }
    with pytest.raises(RequestError) as raised:
        read(stages, shards="???")
    names = "not given: shards, teacher.mae, map.weights; pass each with --set NAME=VALUE"
    assert str(raised.value).endswith(names)
    given = ("shards=x.tar", "teacher.mae=m.pth", "map.weights=w.pth")
    assert read(stages, *given, shards="???")["map"].options["weights"] == "w.pth"


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"select": {"each": None}}, "stage select: each is empty"),
        ({"select": {"each": ["center"]}}, "each of stage select must be a mapping"),
        ({"select": {"each": {"a": 1}}}, "stage a must be a mapping"),
        ({"select": {**SELECT, "out": "o"}}, "`out` is one folder; say it in `each`"),
        ({"select": {"each": {"score": {}}}}, "score is a stage; take another name"),
        ({"select": {"each": {"a/b": {}}}}, "stage 'a/b': a stage's output is a folder"),
        ({"select": {"each": {"a": {"command": "score"}}}}, "it is of select; leave `command` out"),
        (
            {"select": SELECT, "noise": {"command": "select"}},
            "two stages are called noise; rename one",
        ),
        (
            {"more": {"command": "select", "each": {"more": {}}}},
            "two stages are called more; rename one",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(read, stages, message) -> None:
    with pytest.raises(RequestError) as raised:
        read(stages)
    assert message in str(raised.value)
