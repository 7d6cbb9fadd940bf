"""Classifiers that see only the patches that are kept: frozen ones, and those trained so.

Start at `open_classifier`; `start_classifier` is what training begins with.
"""

from ltrp_core.classifiers.fillings import FILLINGS
from ltrp_core.classifiers.model import NOT_FILLED, FrozenClassifier
from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.classifiers.opening import DECLARED, normalization_names, open_classifier
from ltrp_core.classifiers.starts import Start, start_classifier
from ltrp_core.classifiers.trained import (
    Architecture,
    TrainedClassifier,
    load_classifier,
    save_classifier,
)
from ltrp_core.weight_sources import UNTRAINED

__all__ = [
    "DECLARED",
    "FILLINGS",
    "NORMALIZATIONS",
    "NOT_FILLED",
    "UNTRAINED",
    "Architecture",
    "FrozenClassifier",
    "Normalization",
    "Start",
    "TrainedClassifier",
    "load_classifier",
    "normalization_names",
    "open_classifier",
    "save_classifier",
    "start_classifier",
]
