"""Which labels a path or shards hold."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.annotations import FORMS, open_annotations
from pipeline.annotations.opening import AUTO
from pipeline.inputs import Shard
from pipeline.labels.multi import AnnotationLabels
from pipeline.labels.single import ShardLabels
from stages.protocols import Labels


def open_labels(
    shards: Sequence[Shard], annotations: Path | None = None, *, format: str = "auto"
) -> Labels:
    """Returns the labels of the images of some shards.

    Args:
        shards: whose own labels are taken where there are no annotations.
        annotations: a COCO instances JSON or a folder of PASCAL VOC's XML: several classes per
            image, those of its objects.
        format: of the annotations: see `open_annotations`.

    Raises:
        RequestError: no label is there, or one is damaged; the message names it.
    """
    if annotations is None:
        return ShardLabels(shards)
    # Of a data set with both, the boxes: masks do not say which objects there are.
    has_boxes = format == AUTO or (format in FORMS and "boxes" in FORMS[format].shapes)
    shape = "boxes" if has_boxes else "masks"
    return AnnotationLabels(open_annotations(annotations, format=format, shape=shape))
