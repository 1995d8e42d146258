"""Encoded images of WebDataset tar files, read from them directly.

Members with the same path up to the first dot of their name are one sample: `shard/000.jpg` and `shard/000.cls`.  The
class of a sample is the text of its .cls member.  Without .cls members, folders are classes as in a zip.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from pathlib import Path, PurePosixPath

from fastfid.images.folders_and_zips import MAX_FILE_BYTES, READING, FileImages
from fastfid.images.formats import passed_over, split_by_name
from fastfid.images.source import counted, reason_of

CLASS_ENDING = ".cls"  # of the member that holds a sample's class, as WebDataset calls it
LONGEST_CLASS = 1_000  # bytes of a class: a number or a name

Place = tuple[int, int]  # offset and size of a member in its tar


def open_tar(path: Path, skip_corrupt: bool, workers: int | None, class_folders: bool = False) -> FileImages:
    """All images of an uncompressed tar; ValueError for a damaged or compressed one, and for paths that leave it."""
    places = _places(path)
    classes = {_sample(name): name for name in places if name.endswith(CLASS_ENDING)}
    members, others = split_by_name(name for name in places if not name.endswith(CLASS_ENDING))

    def read(member: str) -> bytes:
        offset, size = places[member]
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it holds {size} bytes, more than {MAX_FILE_BYTES}")
        file = os.open(path, READING)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    notes = [note] if (note := passed_over(str(path), others)) else []
    images = FileImages(str(path), members, read, skip_corrupt, workers, notes, class_folders)
    if classes:
        without = [member for member in images.members if _sample(member) not in classes]
        if without:
            raise ValueError(
                f"{path} has a {CLASS_ENDING} member for some images only, and none for {without[0]} and "
                f"{counted(len(without) - 1, 'other')}; give one to each image, or to none"
            )
        long = next((name for name in classes.values() if places[name][1] > LONGEST_CLASS), None)
        if long is not None:
            raise ValueError(f"{path} holds {long} of {places[long][1]} bytes, which is no class; write its name")
        names = [read(classes[_sample(member)]) for member in images.members]
        images.classes = [name.decode("utf-8", "backslashreplace").strip() for name in names]
    return images


def _places(path: Path) -> dict[str, Place]:
    """Offset and size of each file in a tar, by its path."""
    try:
        with tarfile.open(path, "r:") as archive:
            files = [(info.name, info.offset_data, info.size) for info in archive if info.isreg()]
    except Exception as bad:  # tarfile raises anything for a damaged header
        raise ValueError(
            f"{path} is not a readable tar ({reason_of(bad)}); pack it again, without compression"
        ) from None
    names = [name for name, *_ in files]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise ValueError(f"{path} holds the path {name}, which leaves the archive; pack it again without it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} holds {twice[0]} more than once, and only the last could be read; pack it again")
    return {name.removeprefix("./"): (offset, size) for name, offset, size in files}


def _sample(member: str) -> str:
    """The path of a member up to the first dot of its name."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.partition(".")[0] or path.name))
