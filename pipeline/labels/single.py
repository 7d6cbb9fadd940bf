"""The class of an image, from what lies beside it: `.cls`, `.json`, or the folder it lies in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from ltrp_core.errors import DamagedFileError, RequestError
from ltrp_core.parsing import parse_json_object
from ltrp_core.regular_files import read_regular
from pipeline.inputs import Shard
from pipeline.inputs.bad_members import bad_name
from pipeline.inputs.keys import sample_key
from pipeline.inputs.shards import DamagedShardError, FolderShard, TarShard
from pipeline.inputs.tar_members import ForwardReader, TarDamage, is_of_the_system, open_path, walk
from pipeline.store.storage import is_url
from stages.sample_rows import CLASS_KEYS

CLASSES = "classes.txt"
_ENDINGS = (".cls", ".json")
_MAX_CLASSES, _MAX_BYTES = 1 << 20, 1 << 20


class ShardLabels:
    """Labels that stand in the shards: exactly one per image that has one.

    Of a tar: the member KEY.cls, a whole number as `pack` and WebDataset write it, or the first of
    the keys cls, label, class and class_id in KEY.json. Of a folder of images: the first subfolder,
    as ImageFolder has it.
    """

    is_multi = False

    def __init__(self, shards: Sequence[Shard], names: Sequence[str] = ()) -> None:
        """Reads the labels of all shards.

        Args:
            shards: of one kind.
            names: of the classes, by number; empty: those of a classes.txt beside the first tar,
                the folders' names, else the numbers.

        Raises:
            RequestError: no label at all, one that is no class number, or two of one key.
        """
        self._labels: dict[str, int] = {}
        folders = [shard for shard in shards if isinstance(shard, FolderShard)]
        if folders:
            of_key = {k: n for shard in folders for k, n in _folders_of(shard)}
            names = names or sorted(set(of_key.values()))
            number = {name: place for place, name in enumerate(names)}
            self._labels = {key: number[name] for key, name in of_key.items() if name in number}
        for shard in shards:
            if isinstance(shard, TarShard):
                self._add(shard)
        if not self._labels:
            raise RequestError(
                f"{shards[0].path if shards else 'no shard'}: no image has a label; pack class "
                "folders with `ltrp-pipeline pack`, or pass annotations"
            )
        highest = max(self._labels.values())
        self.classes: Sequence[str] = names or _names_beside(shards) or _numbers(highest + 1)
        if highest >= len(self.classes):
            raise RequestError(f"class {highest} is labeled, and {len(self.classes)} have a name")

    def of(self, key: str) -> tuple[int, ...] | None:
        """Returns the number of an image's class, alone; None: it has no label."""
        return (self._labels[key],) if key in self._labels else None

    def _add(self, shard: TarShard) -> None:
        for name, content in _members(shard):
            number = _number(f"{shard.path}: {name}", name, content)
            if number is None:
                continue
            key = sample_key(name)
            # A sample may have both: they must agree, whatever their order.
            if self._labels.setdefault(key, number) != number:
                raise RequestError(
                    f"{shard.path}: {key!r} is labeled {self._labels[key]} and {number}; keys must "
                    "be unique, and a sample have one class"
                )


def _members(shard: TarShard) -> Iterator[tuple[str, bytes]]:
    """Yields name and content of the members that may hold a label."""
    with open_path(shard.path) as file:
        try:
            for entry in walk(ForwardReader(file)):
                is_label = entry.name.lower().endswith(_ENDINGS) and not entry.is_folder
                if not is_label or is_of_the_system(entry.name) or bad_name(entry) is not None:
                    continue
                if entry.size > _MAX_BYTES:
                    raise RequestError(
                        f"{shard.path}: {entry.name!r} has {entry.size} bytes: that is no label"
                    )
                yield entry.name, entry.read()
        except TarDamage as error:
            raise DamagedShardError(f"{shard.path} {error}; write it again") from error


def _number(where: str, name: str, content: bytes) -> int | None:
    if name.lower().endswith(".json"):
        try:
            document: Mapping[str, object] = parse_json_object(content, where)
        except DamagedFileError as error:
            raise RequestError(f"{error}; mend or remove it") from error
        found = next((document[field] for field in CLASS_KEYS if field in document), None)
        if found is None:
            return None
    else:
        text = content.decode("utf-8", "replace").strip()
        found = int(text) if text.isdecimal() and len(text) < 10 else text
    if isinstance(found, bool) or not isinstance(found, int) or not 0 <= found < _MAX_CLASSES:
        raise RequestError(
            f"{where} holds {str(found)[:40]!r}; a label is the number of a class, from 0"
        )
    return found


def _folders_of(shard: FolderShard) -> Iterator[tuple[str, str]]:
    for file, key in zip(shard.files, shard.keys, strict=True):
        folder, slash, _ = file.partition("/")
        if slash:
            yield key, folder


def _names_beside(shards: Iterable[Shard]) -> list[str]:
    for shard in shards:
        path = shard.path
        if isinstance(shard, TarShard) and not is_url(path):
            beside = Path(path).with_name(CLASSES)
            if beside.is_file():
                return read_regular(beside).decode("utf-8", "replace").splitlines()
    return []


def _numbers(count: int) -> list[str]:
    return [str(number) for number in range(count)]
