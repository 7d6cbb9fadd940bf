"""Images with their classes, staged once for all processes that train on them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np

from pipeline.files import atomic_write, replace_text
from pipeline.inputs import Shard
from pipeline.labels import open_labels
from pipeline.parsing import read_json
from pipeline.training_data import StagedImages
from pipeline.training_data.extents import map_array
from pipeline.training_data.staging import alone
from stages.training.labeled_views import UNLABELED, LabeledImages

_CLASSES, _NUMBERS = "classes.json", "class_numbers.npy"


def stage_labels(shards: Sequence[Shard], images: StagedImages) -> LabeledImages:
    """Returns staged images with the class of each; labels are read once, as they then were.

    Args:
        shards: that the images were staged from.
        images: whose folder the classes are written to.

    Raises:
        RequestError: no label at all, or one that is damaged; names it.
    """
    folder = images.folder
    with alone(folder):
        if not (folder / _CLASSES).is_file():
            labels = open_labels(shards)
            found = [labels.of(key) for key in images.keys]
            numbers = [UNLABELED if one is None else one[0] for one in found]
            with atomic_write(folder / _NUMBERS) as temporary, temporary.open("wb") as file:
                np.save(file, np.array(numbers, np.int64))
            replace_text(folder / _CLASSES, json.dumps(list(labels.classes)))
    classes: list[str] = read_json(folder / _CLASSES)
    return LabeledImages(images, tuple(classes), np.array(map_array(folder / _NUMBERS)))


def labels_sha256(data: LabeledImages) -> str:
    """Returns what changes with any image's class, in hex."""
    digest = hashlib.sha256(json.dumps(list(data.classes)).encode())
    digest.update(data.numbers.astype("<i8").tobytes())
    return digest.hexdigest()
