"""Which member of a sample is its image, where several are named as images."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ltrp_core.errors import RequestError
from pipeline.inputs.images import EXTENSIONS, RARE_EXTENSIONS

_COMPOUND, _RARE = 2, 1


def ending(name: str) -> str:
    """Returns a member's name from the first dot of its file name on, in lower case: `.depth.png`.

    >>> ending("a.b/0.Depth.PNG")
    '.depth.png'
    """
    _, dot, rest = name.rpartition("/")[2].partition(".")
    return f"{dot}{rest}".lower()


def checked_image_ext(text: str) -> str:
    """Returns what `--image-ext` names, with its dot; empty if it names nothing.

    Raises:
        RequestError: it is not the ending of an image's name.
    """
    wanted = f".{text.lstrip('.').lower()}" if text else ""
    if wanted and ("/" in wanted or PurePosixPath(f"x{wanted}").suffix not in EXTENSIONS):
        raise RequestError(
            f"--image-ext {text!r} is no ending of an image: pass jpg, depth.png or the like, "
            f"whose last part is one of {', '.join(sorted(EXTENSIONS))}"
        )
    return wanted


@dataclass(slots=True)
class ImageChoice:
    """Says of each member whether it is its sample's image; counts where it had a choice.

    With `only` that is the member of this ending. Else a plain ending (`0.jpg`) goes before one of
    several parts (`0.depth.png`), and a common kind before a rare one (`0.avif`).
    """

    only: str = ""
    """An ending: see `checked_image_ext`"""
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Samples by the ending that was taken and the one that was left"""

    def is_image(self, name: str) -> bool:
        """Whether a member may be an image."""
        of = ending(name)
        if self.only:
            return of == self.only
        suffix = PurePosixPath(name).suffix.lower()
        return suffix in EXTENSIONS or name.rpartition("/")[2].lower() in EXTENSIONS

    def rank(self, name: str) -> int:
        """Returns how far behind the first choice a member's ending is: 0 is the first choice."""
        of = ending(name)
        if self.only:
            return 0
        suffix = PurePosixPath(of).suffix if of.count(".") > 1 else of
        return _COMPOUND * (of.count(".") > 1) + _RARE * (suffix in RARE_EXTENSIONS)

    def took(self, taken: str, left: str) -> None:
        """Takes note of a choice."""
        self.counts[ending(taken), ending(left)] += 1


def notes_on_choices(counts: Counter[tuple[str, str]]) -> list[str]:
    """Returns a line for every pair of endings, most frequent first."""
    return [
        f"took KEY{taken} as the image rather than KEY{left} in {number} sample(s); "
        "--image-ext says which"
        for (taken, left), number in counts.most_common()
    ]
