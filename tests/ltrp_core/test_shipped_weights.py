"""The weights that the package carries: whole, named, and worth something on new photographs."""

import hashlib

import numpy as np
import pytest
import torch
from safetensors import safe_open
from scipy.stats import kendalltau, rankdata
from skimage import data

from ltrp_core import LTRPSelector
from ltrp_core.errors import CheckpointError
from ltrp_core.mae import load_mae
from ltrp_core.partitions import masked_patches, sample_visible
from ltrp_core.rankers import create_ranker, initialize_ranker, load_ranker
from ltrp_core.repeatability import mean_map
from ltrp_core.scoring import leave_one_out_scores, surprise_scores
from ltrp_core.selectors.border import border_contrast
from ltrp_core.shipped_weights import WEIGHTS_FOLDER
from ltrp_core.views import make_view, normalize, render_view

FILES = (
    "mae_tiny/mae.safetensors",
    "ranker_tiny/ranker.safetensors",
    "ranker_tiny_l1/ranker.safetensors",
)
MOST_BYTES, MOST_BYTES_OF_ALL = 12_000_000, 33_000_000


@pytest.fixture(scope="module")
def views() -> torch.Tensor:
    """Five photographs that neither model was trained on: uint8 (5, 3, 224, 224)."""
    images = (
        data.astronaut(),
        data.chelsea(),
        data.coffee(),
        data.rocket(),
        data.stereo_motorcycle()[0],
    )
    return torch.stack(
        [render_view(image, make_view("eval", "", 0, *image.shape[:2], 0), 224) for image in images]
    )


@pytest.fixture(scope="module")
def teacher_maps(views: torch.Tensor) -> np.ndarray:
    """(5, L) mean scores over two covers of each photograph, by `mae_tiny`."""
    mae, images = load_mae("mae_tiny"), normalize(views)
    sums, counts = np.zeros((len(views), 196)), np.zeros((len(views), 196))
    for row in range(len(views)):
        visible = sample_visible(str(row), 0, 22, 196, 0.9, 0, sampler="cover")
        scores = leave_one_out_scores(mae, images[row : row + 1], torch.from_numpy(visible)[None])[
            0
        ]
        np.add.at(sums[row], visible, scores.numpy())
        np.add.at(counts[row], visible, 1)
    return sums / counts


def test_the_files_are_those_of_the_sums_and_small() -> None:
    assert sum((WEIGHTS_FOLDER / name).stat().st_size for name in FILES) < MOST_BYTES_OF_ALL
    lines = (WEIGHTS_FOLDER / "SHA256SUMS").read_text().splitlines()
    assert [line.split("  ")[1] for line in lines] == list(FILES)
    for line in lines:
        sha256, name = line.split("  ")
        content = (WEIGHTS_FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
        assert len(content) < MOST_BYTES


@pytest.mark.parametrize("name", FILES)
def test_the_weights_are_halves_on_the_disk_and_float32_in_memory(name: str) -> None:
    with safe_open(WEIGHTS_FOLDER / name, framework="pt") as file:
        assert {file.get_tensor(key).dtype for key in file.keys()} == {torch.float16}  # noqa: SIM118
    folder = name.partition("/")[0]
    model = load_mae(folder) if folder == "mae_tiny" else load_ranker(folder)
    assert {value.dtype for value in model.state_dict().values()} == {torch.float32}
    assert not model.training


def test_a_path_of_the_same_name_is_not_silently_preferred(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mae_tiny").mkdir()
    (tmp_path / "ranker_tiny").mkdir()
    with pytest.raises(CheckpointError, match=r"'mae_tiny' is both .* pass \./mae_tiny"):
        load_mae("mae_tiny")
    with pytest.raises(CheckpointError, match=r"'ranker_tiny' is both"):
        load_ranker("ranker_tiny")


def test_a_ranker_starts_from_the_shipped_one() -> None:
    ranker = create_ranker("vit_tiny")
    report = initialize_ranker(ranker, "ranker_tiny")
    shipped = load_ranker("ranker_tiny").state_dict()
    assert report.kind == "ranker"
    assert report.missing == ()
    assert all(torch.equal(value, shipped[key]) for key, value in ranker.state_dict().items())


def test_the_autoencoder_reconstructs_better_than_the_mean_color(views: torch.Tensor) -> None:
    mae, images = load_mae("mae_tiny"), normalize(views)
    patches = mae.patchify(images)
    visible = torch.from_numpy(
        np.concatenate([sample_visible(str(row), 0, 1, 196, 0.75, 0) for row in range(len(views))])
    )
    index = visible[..., None].expand(-1, -1, patches.shape[-1])
    colors = patches.gather(1, index).unflatten(2, (-1, 3)).mean(dim=(1, 2))
    masked = torch.ones(patches.shape[:2], dtype=torch.bool).scatter(1, visible, False)
    filled = (patches - colors.repeat(1, 256)[:, None]).square().mean(dim=2)[masked].mean()
    with torch.no_grad():
        error = mae(images, visible)
    assert error < 0.6 * filled


@pytest.fixture(scope="module")
def mixed_maps(views: torch.Tensor) -> np.ndarray:
    """(5, L): ranks of surprise, and half the ranks of border contrast and of nearness to the
    center, as `ranker_tiny` was taught on other photographs."""
    mae, images = load_mae("mae_tiny"), normalize(views)
    rows = [sample_visible(str(row), 0, 12, 196, 0.9, 0) for row in range(len(views))]
    visible = np.stack(rows)
    scores = surprise_scores(mae, images, torch.from_numpy(visible)).numpy()
    surprise, _ = mean_map(masked_patches(visible, 196), scores, 196)
    place = np.arange(196)
    center = np.broadcast_to(-np.hypot(place // 14 - 6.5, place % 14 - 6.5), surprise.shape)
    border = border_contrast(images, 16).numpy()
    terms = ((surprise, 1.0), (border, 0.5), (center, 0.5))
    return sum(rankdata(values, axis=1) * weight for values, weight in terms)


@pytest.mark.parametrize(
    ("ranker", "label"), [("ranker_tiny", "mixed_maps"), ("ranker_tiny_l1", "teacher_maps")]
)
def test_each_ranker_ranks_new_photographs_as_its_label_does(
    views: torch.Tensor, ranker: str, label: str, request
) -> None:
    with torch.no_grad():
        scores = load_ranker(ranker)(normalize(views)).numpy()
    maps = request.getfixturevalue(label)
    taus = [kendalltau(*pair).statistic for pair in zip(scores, maps, strict=True)]
    assert min(taus) > 0.2
    assert np.mean(taus) > 0.4


def test_the_best_patches_of_the_cat_lie_on_the_cat(views: torch.Tensor) -> None:
    """Its left third is wall and blanket: out of focus, nothing to see."""
    kept = LTRPSelector(load_ranker("ranker_tiny"))(normalize(views[1:2]), 0.25)[0]
    columns = kept % 14
    assert (columns >= 3).float().mean() > 0.8
