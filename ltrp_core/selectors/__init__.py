"""What chooses patches: a ranker, and what it is compared with at the same k (Sec. 4.1, Fig. 4, 5).

Start at `create_selector`. The rows are here; a method is one file beside this one.
"""

from ltrp_core.selectors.adavit import ADAVIT
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
from ltrp_core.selectors.class_attention import DINO, MOCO, ROLLOUT
from ltrp_core.selectors.dge import DGE
from ltrp_core.selectors.dpc_knn import DPC_KNN, DPC_KNN_TOKENS
from ltrp_core.selectors.dynamicvit import DYNAMIC_VIT
from ltrp_core.selectors.evit import EVIT
from ltrp_core.selectors.gfnet import GFNET
from ltrp_core.selectors.grad_cam import GRAD_CAM
from ltrp_core.selectors.ia_red2 import IA_RED2
from ltrp_core.selectors.priors import Priors, prior_names
from ltrp_core.selectors.ranker import RANKER
from ltrp_core.selectors.tome import TOME

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
        "dpc-knn": DPC_KNN,
        "dpc-knn-tokens": DPC_KNN_TOKENS,
        "dino": DINO,
        "moco": MOCO,
        "grad-cam": GRAD_CAM,
        "attention-rollout": ROLLOUT,
        "evit": EVIT,
        "dynamicvit": DYNAMIC_VIT,
        "ia-red2": IA_RED2,
        "adavit": ADAVIT,
        "dge": DGE,
        "tome": TOME,
        "gfnet": GFNET,
    }
)
