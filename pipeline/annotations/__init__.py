"""Where the objects of an image are, from five kinds of annotations. Start at `open_annotations`.

All of them join by sample key: see `pipeline.inputs.keys`.
"""

from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.opening import (
    FORMS,
    AnnotationForm,
    AnnotationSource,
    format_names,
    open_annotations,
)

__all__ = [
    "FORMS",
    "AnnotationForm",
    "AnnotationSource",
    "CocoAnnotations",
    "format_names",
    "open_annotations",
]
