"""Where the objects of an image are, from five kinds of annotations. Start at `open_annotations`.

All of them join by sample key: the annotated file's name without its suffix, as it stands in the
annotations, or the last part of the key alone.
"""

from pipeline.annotations.coco import CocoAnnotations
from pipeline.annotations.opening import FORMATS, AnnotationSource, open_annotations

__all__ = ["FORMATS", "AnnotationSource", "CocoAnnotations", "open_annotations"]
