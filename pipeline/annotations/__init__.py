"""Where the objects of an image are, from five kinds of annotations. Start at `open_annotations`.

All of them join by sample key: see `pipeline.inputs.keys`.
"""

from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.opening import FORMATS, AnnotationSource, open_annotations

__all__ = ["FORMATS", "AnnotationSource", "CocoAnnotations", "open_annotations"]
