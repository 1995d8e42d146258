"""Encoded images of WebDataset tar files, read from them directly.

Members with the same path up to the first dot of their name are one sample: `shard/000.jpg` and `shard/000.cls`.  The
class of a sample is the text of its .cls member.  Without .cls members, folders are classes as in a zip.  Several tars
are the shards of one set.
"""

from __future__ import annotations

import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastfid.images.folders_and_zips import MAX_FILE_BYTES, READING, FileImages
from fastfid.images.formats import passed_over, split_by_name
from fastfid.images.source import counted, reason_of

CLASS_ENDING = ".cls"  # of the member that holds a sample's class, as WebDataset calls it
LONGEST_CLASS = 1_000  # bytes of a class: a number or a name

Place = tuple[Path, int, int]  # a tar, and offset and size of a member in it


def open_tars(
    name: str, paths: Sequence[Path], skip_corrupt: bool, workers: int | None, class_folders: bool = False
) -> FileImages:
    """All images of uncompressed tars; ValueError for a damaged or compressed one, and for paths that leave it.

    Of several tars, the shards of one set, a member is called by its tar and its path there: shard-0.tar/000.jpg.
    """
    places = _places(paths[0]) if len(paths) == 1 else _places_of_shards(paths)
    classes = {_sample(member): member for member in places if member.endswith(CLASS_ENDING)}
    members, others = split_by_name(member for member in places if not member.endswith(CLASS_ENDING))

    def read(member: str) -> bytes:
        path, offset, size = places[member]
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it holds {size} bytes, more than {MAX_FILE_BYTES}")
        file = os.open(path, READING)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    notes = [note] if (note := passed_over(name, others)) else []
    archives = 0 if len(paths) == 1 else 1
    images = FileImages(name, members, read, skip_corrupt, workers, notes, class_folders, archives)
    if classes:
        _check_classes(name, images.members, classes, places)
        names = [read(classes[_sample(member)]) for member in images.members]
        images.classes = [text.decode("utf-8", "backslashreplace").strip() for text in names]
    return images


def _check_classes(name: str, members: list[str], classes: dict[str, str], places: dict[str, Place]) -> None:
    """ValueError if an image has no class, or a class is too long for a name."""
    without = [member for member in members if _sample(member) not in classes]
    if without:
        raise ValueError(
            f"{name} has a {CLASS_ENDING} member for some images only, and none for {without[0]} and "
            f"{counted(len(without) - 1, 'other')}; give one to each image, or to none"
        )
    long = next((member for member in classes.values() if places[member][2] > LONGEST_CLASS), None)
    if long is not None:
        raise ValueError(f"{name} holds {long} of {places[long][2]} bytes, which is no class; write its name")


def _places_of_shards(paths: Sequence[Path]) -> dict[str, Place]:
    """The files in several tars, each by the path of its tar below their common folder, and its own path."""
    above = os.path.commonpath([path.parent for path in paths])
    shards = {os.path.relpath(path, above).replace(os.sep, ":"): path for path in paths}
    return {f"{shard}/{member}": place for shard, path in shards.items() for member, place in _places(path).items()}


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
    return {name.removeprefix("./"): (path, offset, size) for name, offset, size in files}


def _sample(member: str) -> str:
    """The path of a member up to the first dot of its name."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.partition(".")[0] or path.name))
