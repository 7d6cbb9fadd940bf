"""What chooses patches: a ranker, and what it is compared with at the same k (Sec. 4.1, Fig. 4, 5).

Start at `create_selector`. The rows are here; a method is one file beside this one.
"""

from ltrp_core.selectors.base import (
    ENTRY_POINTS,
    SELECTORS,
    PlainSelector,
    ScoreSelector,
    Selector,
    SelectorOptions,
    SelectorSpec,
    create_selector,
    selector_names,
    selector_spec,
)
from ltrp_core.selectors.baselines import CENTER, RANDOM, VARIANCE
from ltrp_core.selectors.border import BORDER
from ltrp_core.selectors.border_features import BORDER_FEATURES
from ltrp_core.selectors.priors import Priors, prior_names
from ltrp_core.selectors.ranker import RANKER

__all__ = [
    "ENTRY_POINTS",
    "SELECTORS",
    "PlainSelector",
    "Priors",
    "ScoreSelector",
    "Selector",
    "SelectorOptions",
    "SelectorSpec",
    "create_selector",
    "prior_names",
    "selector_names",
    "selector_spec",
]

SELECTORS.update(
    {
        "ranker": RANKER,
        "random": RANDOM,
        "center": CENTER,
        "patch-variance": VARIANCE,
        "border": BORDER,
        "border-features": BORDER_FEATURES,
    }
)
