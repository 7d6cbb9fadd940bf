"""EfficientNet-Lite by the parameter names of the PyTorch ports of TensorFlow's code.

Those number the blocks through; timm numbers them within stages and calls layers by their role. The
ports feed (x - 127) / 128, as TensorFlow's models were trained.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ltrp_core.classifiers.normalization import NORMALIZATIONS

_TOP = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
_EXPANDING = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
_FIRST = {
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn1",
    "_project_conv": "conv_pw",
    "_bn2": "bn2",
}
"""Of blocks that do not expand: the first stage's."""
_BLOCK = re.compile(r"_blocks\.(\d+)\.(\w+)\.(\w+)")
LITE_NORMALIZATION = NORMALIZATIONS["tf-lite"]


def is_lite(state: Iterable[str]) -> bool:
    """Returns whether parameters are called as those ports call an EfficientNet-Lite's.

    The larger EfficientNets have squeeze-and-excite layers, and another normalization.
    """
    names = list(state)
    return "_conv_stem.weight" in names and not any("._se_" in name for name in names)


def timm_names(state: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Returns the parameters by timm's names; a name that is not in the table stays.

    Args:
        state: see `is_lite`.
        wanted: names of the parameters of timm's model, whose stages they tell.
    """
    found = (re.match(r"blocks\.(\d+)\.(\d+)\.", name) for name in wanted)
    places = sorted({(int(match[1]), int(match[2])) for match in found if match})
    expands = {match[1] for name in state if (match := _BLOCK.match(name)) and "_expand" in name}
    renamed = {}
    for name, value in state.items():
        block = _BLOCK.fullmatch(name)
        layer, _, rest = name.partition(".")
        if block and int(block[1]) < len(places):
            stage, number = places[int(block[1])]
            layers = _EXPANDING if block[1] in expands else _FIRST
            called = layers.get(block[2], block[2])
            renamed[f"blocks.{stage}.{number}.{called}.{block[3]}"] = value
        elif not block and layer in _TOP:
            renamed[f"{_TOP[layer]}.{rest}"] = value
        else:
            renamed[name] = value
    return renamed
