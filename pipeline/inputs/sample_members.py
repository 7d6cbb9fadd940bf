"""The members of a sample beside its image, for stages that copy whole samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from pipeline.inputs.bad_members import bad_content
from pipeline.inputs.keys import sample_key
from pipeline.inputs.tar_members import Entry, TarDamage
from stages.protocols import BadSample


@dataclass(frozen=True, slots=True)
class Member:
    """The encoded image of one sample."""

    key: str
    name: str
    offset: int
    """Of the data in the tar, bytes"""
    data: bytes
    others: tuple[tuple[str, bytes], ...] = ()
    """Ending and content of the sample's other members, where they are read"""

    @property
    def content(self) -> tuple[tuple[str, bytes], ...]:
        """Ending and content of all members that were read, the image's first."""
        # Of a folder's file with several dots the key has all but the last part.
        in_tar = sample_key(self.name) == self.key
        ending = ending_of(self.name) if in_tar else self.name.rpartition(".")[2]
        return ((ending, self.data), *self.others)


def ending_of(name: str) -> str:
    """Returns a member's name from after the first dot of its file name: WebDataset's ending.

    >>> ending_of("a.b/0.depth.PNG")
    'depth.PNG'
    """
    return name.rpartition("/")[2].partition(".")[2]


@dataclass(slots=True)
class OtherMembers:
    """Gathers the members of the sample that is being read; nothing where none are wanted."""

    wanted: bool
    problem: BadSample | None = None
    """Why the sample cannot be copied whole"""
    _key: str = ""
    _found: dict[str, bytes] = field(default_factory=dict)

    def begin(self, key: str, entry: Entry, *, is_known: bool) -> None:
        """Takes note of the sample that the next members are of.

        Args:
            key: its key.
            entry: the member that is being looked at.
            is_known: whether a member of that key came before.

        Raises:
            TarDamage: others came in between, as WebDataset would not put them together either.
        """
        if not self.wanted or key == self._key:
            return
        if is_known:
            raise TarDamage(
                f"is not in order: the members of {key!r} do not lie beside each other "
                f"({entry.name!r}, byte {entry.offset}), and whole samples are read"
            )
        self._key, self._found, self.problem = key, {}, None

    def add(self, entry: Entry) -> None:
        """Reads a member that is not the image."""
        if not self.wanted:
            return
        problem = bad_content(entry)
        try:
            if problem is None:
                self._found[ending_of(entry.name)] = entry.read()
        except TarDamage as error:  # met again, and said, when the next member is looked for
            problem = BadSample(self._key, entry.offset, "truncated", str(error))
        self.problem = self.problem or problem

    def add_image(self, image: Member) -> None:
        """Keeps an image that a better one has taken the place of."""
        if self.wanted:
            self._found[ending_of(image.name)] = image.data

    def complete(self, image: Member, left_out: list[BadSample]) -> Iterator[Member]:
        """Yields the image with the members beside it; a sample that is not whole is left out."""
        if self.problem is not None:
            left_out.append(self.problem)
        else:
            yield replace(image, others=tuple(self._found.items())) if self._found else image
