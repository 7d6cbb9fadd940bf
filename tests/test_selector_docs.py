"""docs/selectors.md says of every method what its row says."""

from pathlib import Path

from ltrp_core.selectors import SELECTORS

PAGE = Path(__file__).resolve().parent.parent / "docs" / "selectors.md"
HEAD = (
    "| name | keeps | from | labels | scores | weights |\n| --- | --- | --- | --- | --- | --- |\n"
)


def row(name: str) -> str:
    spec = SELECTORS[name]
    yes = {True: "yes", False: "no"}
    labels = yes[spec.uses_labels] if spec.weights_file else "no"
    paper = spec.paper or ("Luo et al., CVPR 2024" if name == "ranker" else "ours")
    takes = spec.takes or (
        "a ranker" if name == "ranker" else "a masked autoencoder" if spec.weights_file else ""
    )
    return f"| `{name}` | {spec.help} | {paper} | {labels} | {yes[spec.has_scores]} | {takes} |"


def test_the_table_is_that_of_the_rows() -> None:
    text = PAGE.read_text("utf-8")
    found = text.partition("<!-- selectors -->\n")[2].partition("<!-- /selectors -->")[0]
    head, rows = found[: len(HEAD)], found[len(HEAD) :].splitlines()
    assert head == HEAD
    names = [line.split("`")[1] for line in rows]
    assert rows == [row(name) for name in names]
    assert {name for name, spec in SELECTORS.items() if spec.paper} <= set(names)


def test_every_faithful_rule_is_explained() -> None:
    text = PAGE.read_text("utf-8")
    for name, spec in SELECTORS.items():
        if spec.paper:
            assert f"`{name}`" in text.partition("## What each one does")[2], name
