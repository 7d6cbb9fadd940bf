"""Classifiers that are not trained here, and see only the patches that are kept.

Start at `open_classifier`.
"""

from ltrp_core.classifiers.fillings import FILLINGS
from ltrp_core.classifiers.model import NOT_FILLED, FrozenClassifier
from ltrp_core.classifiers.normalization import NORMALIZATIONS, Normalization
from ltrp_core.classifiers.opening import DECLARED, normalization_names, open_classifier

__all__ = [
    "DECLARED",
    "FILLINGS",
    "NORMALIZATIONS",
    "NOT_FILLED",
    "FrozenClassifier",
    "Normalization",
    "normalization_names",
    "open_classifier",
]
