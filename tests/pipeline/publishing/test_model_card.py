"""The card of a ranker on the hub: it says what config.json says, and nothing else."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from huggingface_hub import ModelCard

from ltrp_core.errors import CheckpointError
from ltrp_core.rankers import create_ranker, save_ranker
from pipeline.publishing.model_card import model_card, write_model_card

EXTRA = {
    "training": {
        "base_lr": 1.5e-4,
        "epochs": 400,
        "loss": "listmle",
        "init": "timm:vit_tiny_patch16_224.augreg_in21k",
        "init_from": "/home/someone/earlier-ranker",
        "note": "a | b",
    },
    "scored_by": {"mae_sha256": "ab" * 32, "mask_ratio": 0.9, "score_dtype": "float16"},
    "measures": {"tau": 0.61234, "cover_tau": 0.5, "rho": float("nan")},
    "ceiling": {"tau": 0.7},
    "records": {"train": 12000, "held_out": 800},
}


def _save(folder: Path, extra: dict | None = None, name: str = "vit_tiny") -> Path:
    save_ranker(create_ranker(name, grid=4), folder, extra or {})
    return folder


def _front_matter(card: str) -> dict:
    assert card.startswith("---\n")
    return yaml.safe_load(card.split("---\n")[1])


def test_the_hub_reads_task_library_and_measures_from_the_front_matter(tmp_path) -> None:
    data = ModelCard(model_card(_save(tmp_path, EXTRA), repository="me/ranker")).data
    assert (data.library_name, data.pipeline_tag) == ("ltrp-pipeline", "image-feature-extraction")
    assert {"learning-to-rank", "patch-selection", "vit_tiny"} <= set(data.tags)
    assert data.metrics == ["tau", "cover_tau"]
    assert data.model_name == "me/ranker"
    assert {r.metric_type: r.metric_value for r in data.eval_results} == {
        "tau": 0.6123,
        "cover_tau": 0.5,
    }


def test_data_recipe_and_results_are_tables_of_what_was_written(tmp_path) -> None:
    card = model_card(_save(tmp_path, EXTRA))
    for row in (
        f"| sha256 of the masked autoencoder | {'ab' * 32} |",
        "| mask ratio | 0.9 |",
        "| number of train | 12000 |",
        "| base_lr | 0.00015 |",
        "| init | timm:vit_tiny_patch16_224.augreg_in21k |",
        r"| note | a \| b |",
        "| Kendall tau-b, visible patches | 0.612 | 0.700 | 87% |",
        "| Kendall tau-b, all patches | 0.500 |  |  |",
    ):
        assert row in card.splitlines(), row


def test_paths_of_the_machine_do_not_reach_the_card(tmp_path) -> None:
    card = model_card(_save(tmp_path / "secret-folder", EXTRA))
    assert "/home/someone" not in card
    assert "secret-folder" not in card
    assert "| init_from | earlier-ranker |" in card


def test_what_config_does_not_say_is_left_out(tmp_path) -> None:
    card = model_card(_save(tmp_path))
    assert not {"metrics", "model-index", "license", "datasets"} & set(_front_matter(card))
    headings = re.findall(r"^## (.+)$", card, re.MULTILINE)
    assert headings == ["Intended use", "Limits", "How to use"]
    assert "Nothing was measured on held-out images." in card
    assert not re.search(r"\b(None|nan|Undefined)\b", card)


def test_only_what_was_measured_is_in_the_results(tmp_path) -> None:
    card = model_card(_save(tmp_path, {"measures": {"rho": float("nan"), "ndcg5": 0.9}}))
    assert "| measure | this ranker |\n| --- | --- |\n| NDCG@5, visible patches | 0.900 |" in card
    assert "Spearman" not in card
    assert "ceiling" not in card


def test_tables_have_equal_columns_and_the_text_no_empty_runs(tmp_path) -> None:
    for number, extra in enumerate((EXTRA, {}, {"measures": {"tau": 0.5}})):
        card = model_card(_save(tmp_path / str(number), extra))
        for table in re.findall(r"(?:^\|.*\n)+", card, re.MULTILINE):
            rows = [re.sub(r"\\\|", "", row) for row in table.strip().splitlines()]
            assert len({row.count("|") for row in rows}) == 1, table
            assert re.fullmatch(r"\|( --- \|)+", rows[1])
        assert "\n\n\n" not in card


def test_the_example_runs_as_it_stands(tmp_path) -> None:
    card = model_card(_save(tmp_path))
    (code,) = re.findall(r"```python\n(.+?)```", card, re.DOTALL)
    names = {"images": torch.zeros(2, 3, 64, 64)}
    exec(code.replace("path/to/this/folder", str(tmp_path)), names)
    assert names["kept"].shape == (2, 8)


def test_a_dense_ranker_is_not_called_sparse(tmp_path) -> None:
    assert "sparse" not in model_card(_save(tmp_path, name="test_resnet"))


def test_writing_keeps_a_card_that_was_edited_unless_told(tmp_path) -> None:
    path = write_model_card(_save(tmp_path))
    assert path == tmp_path / "README.md"
    assert path.read_text() == model_card(tmp_path)
    path.write_text("edited")
    write_model_card(tmp_path, replace=False)
    assert path.read_text() == "edited"
    write_model_card(tmp_path)
    assert path.read_text() == model_card(tmp_path)


def test_a_folder_without_a_ranker_has_no_card(tmp_path) -> None:
    with pytest.raises(CheckpointError, match="no ranker in"):
        model_card(tmp_path)


def test_a_ranker_of_surprise_is_not_said_to_have_learned_the_papers_label():
    card = model_card("ranker_tiny")
    assert "surprise, not the paper's label" in card
    assert "mixed by rank: surprise=1, center=0.5, border=0.5" in card
    assert "Kendall tau-b, lists of patches" in card
    assert "In training it saw lists of patches alone" in card
    assert "when they are taken away" in model_card("ranker_tiny_l1")
