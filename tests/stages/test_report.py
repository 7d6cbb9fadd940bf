"""What the report shows is what `select` kept, to the patch; and the pictures are what they say."""

import numpy as np
import pytest
import torch
from conftest import SMALL_MAE
from report_sources import small_report_inputs

from ltrp_core.errors import RequestError
from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.rankers import create_ranker
from ltrp_core.selection import num_homogeneous
from pipeline.inputs.samples import read_samples
from pipeline.store import open_cache
from stages import report
from stages.report import ReportConfig, attention_profile, stored_order

RANKER = "ranker"


def best(*lists: list[int]) -> list[np.ndarray]:
    return [np.array(values) for values in lists]


def test_the_order_begins_as_the_longest_selection_though_stored_scores_tie() -> None:
    scores = np.array([1.0, 2.0, 2.0, 2.0, 0.5], np.float32)
    assert stored_order(scores, best([3], [3, 1])).tolist() == [3, 1, 2, 0, 4]
    assert stored_order(scores, []).tolist() == [1, 2, 3, 0, 4]
    assert stored_order(np.zeros(5, np.float32), best([3, 1])).tolist() == [3, 1, 0, 2, 4]


@pytest.mark.parametrize(
    ("lists", "message"),
    [(best([3], [1, 3]), "two orders"), (best([0, 1]), "best patches by its stored scores")],
)
def test_selections_that_contradict_each_other_or_the_scores_are_refused(lists, message) -> None:
    scores = np.array([1.0, 2.0, 2.0, 2.0, 0.5], np.float32)
    with pytest.raises(RequestError, match=message):
        stored_order(scores, lists)


@pytest.fixture(scope="module")
def gallery(photographs, small_mae, tmp_path_factory):
    made = small_report_inputs(tmp_path_factory.mktemp("made"), photographs, small_mae)
    selections = open_cache(made.selections)
    return list(_images(selections, made.shards)), selections, made.shards


def _images(selections, shards):
    return report.run(
        ReportConfig(images=5, mask_ratio=0.75),
        (sample for shard in shards for sample in read_samples(shard)),
        selections=selections if isinstance(selections, dict) else {RANKER: selections},
        mae=MaskedAutoencoder(SMALL_MAE).eval(),
        teacher=None,
        annotations=None,
    )


def test_the_first_images_by_key_are_shown_with_their_selections(gallery) -> None:
    images, selections, _ = gallery
    stored = {}
    for unit in selections.units:
        arrays = selections.read(unit)
        for row, key in enumerate(arrays["key"].tolist()):
            stored[key] = {ratio: arrays[f"kept_{ratio:g}"][row] for ratio in (0.25, 0.5, 0.75)}
    assert [image.key for image in images] == sorted(stored)[:5]
    for image in images:
        for ratio, kept in stored[image.key].items():
            np.testing.assert_array_equal(image.selections[RANKER][ratio].patches, kept)
            num_best = len(kept) - num_homogeneous(0.2, len(kept))
            assert image.selections[RANKER][ratio].num_homogeneous == len(kept) - num_best
            np.testing.assert_array_equal(image.orders[RANKER][:num_best], kept[:num_best])


def test_an_order_is_all_patches_and_random_ones_differ_by_image(gallery) -> None:
    images, _, _ = gallery
    for image in images:
        assert set(image.orders) == {"ranker", "border contrast", "patch variance", "random"}
        for order in image.orders.values():
            assert sorted(order.tolist()) == list(range(36))
    assert len({tuple(image.orders["random"].tolist()) for image in images}) == len(images)


def test_the_difference_is_that_of_the_two_reconstructions(gallery) -> None:
    for image in gallery[0]:
        pictures = image.reconstruction.astype(float), image.reconstruction_without.astype(float)
        levels = np.abs(pictures[0] - pictures[1]).mean(axis=2)
        is_shown = (image.reconstruction > 0).all(2) & (image.reconstruction < 255).all(2)
        is_shown &= (image.reconstruction_without > 0).all(2)
        is_shown &= (image.reconstruction_without < 255).all(2)
        assert np.abs(levels - image.difference)[is_shown].max() < 1.01
        others = [patch for patch in image.visible.tolist() if patch != image.left_out]
        patches = image.difference.reshape(6, 8, 6, 8).transpose(0, 2, 1, 3).reshape(36, -1)
        assert patches[others].max() == 0
        assert patches[image.left_out].max() > 0


def test_a_profile_is_the_mean_over_photos(gallery) -> None:
    torch.manual_seed(4)
    ranker = create_ranker("vit_tiny", grid=6, patch_size=8).eval()
    photos = [image.photo for image in gallery[0][:3]]
    whole = attention_profile("Ranker", ranker, photos)
    each = [attention_profile("Ranker", ranker, [photo]).distances for photo in photos]
    assert (whole.num_images, whole.image_size) == (3, 48)
    np.testing.assert_allclose(whole.distances, np.mean(each, axis=0), rtol=1e-9)
    with pytest.raises(RequestError, match="takes images of 48 x 48 px"):
        attention_profile("Ranker", ranker, [np.zeros((64, 64, 3), np.uint8)])


@pytest.mark.parametrize("source", ["teacher", "baseline"])
def test_what_selected_comes_first_whatever_it_was(gallery, source) -> None:
    _, selections, shards = gallery

    class Renamed:
        """The same selections, as if another source of scores had made them."""

        def __init__(self):
            self.run = {k: v for k, v in selections.run.items() if k != "selector"}
            self.run["source"] = source
            self.units = selections.units

        def read(self, unit, names=None):
            arrays = selections.read(unit, names)
            if "score" in arrays:
                arrays[f"{source}_score"] = arrays.pop("score")
            return arrays

    images = list(_images({source: Renamed()}, shards))
    for image, before in zip(images, gallery[0], strict=True):
        assert list(image.selections) == [source]
        assert RANKER not in image.orders
        np.testing.assert_array_equal(image.orders[source], before.orders[RANKER])
