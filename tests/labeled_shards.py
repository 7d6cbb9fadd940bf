"""Shards of the photographs with the class of each beside it."""

import io
import tarfile

CLASSES = {"astronaut": 2, "cat": 0, "coffee": 1}
"""By the photographs' names."""


def write_labeled(folder, photographs, *, names=None, unlabeled=(), classes=CLASSES):
    """Writes three tars into `folder`, made anew; returns it.

    Args:
        names: of the photographs; None: all.
        unlabeled: photographs without a class.
        classes: number of each subject.
    """
    folder.mkdir(parents=True)
    items = sorted((n, c) for n, c in photographs.items() if names is None or n in names)
    for number in range(3):
        with tarfile.open(folder / f"part-{number}.tar", "w") as tar:
            for name, content in items[number::3]:
                members = {f"{name}.jpg": content}
                if name not in unlabeled:
                    members[f"{name}.cls"] = str(classes[name.split("_")[0]]).encode()
                for member, data in members.items():
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
    return folder
