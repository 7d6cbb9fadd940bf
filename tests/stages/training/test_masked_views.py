"""Masked views: each view once an epoch, whatever the ranks and parts; held-out errors."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from conftest import SMALL_MAE
from scored_caches import QUIET

from ltrp_core.mae import MaskedAutoencoder
from ltrp_core.partitions import num_visible
from ltrp_core.views import normalize
from pipeline.inputs import find_shards
from pipeline.training_data import StagedImages, stage_images
from stages.training.ddp import Processes
from stages.training.held_out_images import HeldOutImages
from stages.training.masked_views import PretrainingSteps
from stages.training.order import RecordOrder

ROWS = np.array([0, 2, 3, 5, 6, 7, 8, 9, 11])


@pytest.fixture
def images(shards, tmp_path):
    return StagedImages(stage_images(find_shards([str(shards)]), tmp_path / "staged", QUIET))


def steps_of(images, *, ranks=None, accumulate=1, ratios=(0.75, 0.9), batch=5):
    return PretrainingSteps(
        images=images,
        rows=ROWS,
        order=RecordOrder(len(ROWS), 12, 3, batch, 0),
        ranks=ranks or Processes(),
        accumulate=accumulate,
        mask_ratios=ratios,
        image_size=48,
        length=36,
    )


def views_of(batches):
    """Every view of some steps as bytes, with its visible patches."""
    return sorted(
        (pixels.numpy().tobytes(), tuple(visible.tolist()))
        for batch in batches
        for part in batch.parts
        if not part.is_padding
        for pixels, visible in zip(part.pixels, part.visible)
    )


def epoch_of(steps, epoch=0):
    return [steps[epoch, step] for step in range(steps.order.steps_per_epoch)]


def test_an_epoch_shows_every_view_once_under_one_of_the_masks(images):
    steps = steps_of(images)
    found = views_of(epoch_of(steps))
    assert len(set(found)) == len(found) == 27
    assert not set(found) & set(views_of(epoch_of(steps, 1)))
    counts = {len(visible) for _, visible in found}
    assert counts == {num_visible(36, 0.75), num_visible(36, 0.9)}
    assert {len(v) for _, v in views_of(epoch_of(steps_of(images, ratios=(0.9,))))} == {
        num_visible(36, 0.9)
    }


@pytest.mark.parametrize(("size", "accumulate"), [(1, 2), (2, 1), (3, 2), (7, 1)])
def test_ranks_and_parts_change_no_view_of_a_step(images, size, accumulate):
    whole = steps_of(images)
    ranks = [steps_of(images, ranks=Processes(r, size), accumulate=accumulate) for r in range(size)]
    for step in range(whole.order.steps_per_epoch):
        batches = [pickle.loads(pickle.dumps(steps))[0, step] for steps in ranks]
        assert views_of(batches) == views_of([whole[0, step]])
        assert {batch.count for batch in batches} == {whole[0, step].count}
        assert all(batch.parts for batch in batches)


def test_the_error_is_that_of_one_image_after_another(images):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(SMALL_MAE).eval()
    held_out = HeldOutImages.make(images, ROWS, mae, (0.75, 0.9), 0, Processes())
    errors, filled = held_out.measure(mae), held_out.mean_filled()
    blocks = [
        (slice(None), slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        for row, column in itertools.product(range(6), range(6))
    ]
    for ratio, name in ((0.75, "error_75"), (0.9, "error_90")):
        of_model, of_mean = [], []
        for pixels, visible in zip(held_out.views, held_out.visible[ratio]):
            image, some = normalize(pixels[None]), visible[None]
            with torch.no_grad():
                predicted = mae.unpatchify(mae.decode(mae.encode(image, some), some))[0]
            image = image[0]
            seen = torch.cat([image[blocks[i]].flatten(1) for i in visible.tolist()], dim=1)
            color = seen.mean(dim=1)[:, None, None]
            masked = [block for i, block in enumerate(blocks) if i not in visible]
            of_model.append(np.mean([((predicted - image)[b] ** 2).mean() for b in masked]))
            of_mean.append(np.mean([((color - image[b]) ** 2).mean() for b in masked]))
        assert errors[name] == pytest.approx(np.mean(of_model), rel=1e-5)
        assert filled[name] == pytest.approx(np.mean(of_mean), rel=1e-5)


def test_a_drawing_has_the_photo_and_keeps_the_visible_patches(images):
    torch.manual_seed(0)
    mae = MaskedAutoencoder(SMALL_MAE).eval()
    held_out = HeldOutImages.make(images, ROWS, mae, (0.75, 0.9), 0, Processes())
    drawn = held_out.draw(mae)
    assert drawn.shape == (6 * 52, 5 * 52, 3)
    photo, seen, whole = (drawn[2:50, 52 * n + 2 : 52 * n + 50] for n in range(3))
    assert np.abs(photo.astype(int) - held_out.views[0].permute(1, 2, 0).numpy()).max() <= 1
    for patch in held_out.visible[0.75][0].tolist():
        row, column = divmod(patch, 6)
        block = (slice(8 * row, 8 * row + 8), slice(8 * column, 8 * column + 8))
        assert (seen[block] == photo[block]).all()
        assert (whole[block] == photo[block]).all()
    assert (whole != photo).any()
