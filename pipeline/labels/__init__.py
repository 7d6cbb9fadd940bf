"""Labels by sample key, single or multi, of shards or annotations. Start at `open_labels`."""

from pipeline.labels.multi import AnnotationLabels
from pipeline.labels.opening import open_labels
from pipeline.labels.single import ShardLabels

__all__ = ["AnnotationLabels", "ShardLabels", "open_labels"]
