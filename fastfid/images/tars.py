"""Encoded images of WebDataset tar files, read from them directly.

Members with the same path up to the first dot of their name are one sample: `shard/000.jpg` and `shard/000.cls`.  The
class of a sample is the text of its .cls member.  Without .cls members, folders are classes as in a zip.  A link is
read as the member that it leads to.  Several tars are the shards of one set.
"""

from __future__ import annotations

import os
import posixpath
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from fastfid.images.folders_and_zips import MAX_FILE_BYTES, READING, FileImages
from fastfid.images.formats import passed_over, split_by_name
from fastfid.images.source import counted, reason_of

CLASS_ENDING = ".cls"  # of the member that holds a sample's class, as WebDataset calls it
LONGEST_CLASS = 1_000  # bytes of a class: a number or a name
MOST_LINKS = 40  # that lead to each other, as in Linux
END_BYTES = 1 << 20  # that must be zero from the end on; tar fills 10 KiB

Place = tuple[Path, int, int]  # a tar, and offset and size of a member in it


def open_tars(
    name: str,
    paths: Sequence[Path],
    skip_corrupt: bool,
    workers: int | None,
    class_folders: bool = False,
    beside: str = "",
) -> FileImages:
    """All images of uncompressed tars; ValueError for a damaged or compressed one, and for paths that leave it.

    beside  a note on what lies beside the tars

    Of several tars, the shards of one set, a member is called by its tar and its path there: shard-0.tar/000.jpg.
    """
    places, unread = _places(paths[0]) if len(paths) == 1 else _places_of_shards(paths)
    classes = {_sample(member): member for member in places if member.endswith(CLASS_ENDING)}
    members, others = split_by_name(member for member in places if not member.endswith(CLASS_ENDING))
    others.update(unread)

    def read(member: str) -> bytes:
        path, offset, size = places[member]
        if size > MAX_FILE_BYTES:
            raise ValueError(f"it holds {size} bytes, more than {MAX_FILE_BYTES}")
        file = os.open(path, READING)
        try:
            return os.pread(file, size, offset)
        finally:
            os.close(file)

    notes = [note for note in (passed_over(name, others), beside) if note]
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


def _places_of_shards(paths: Sequence[Path]) -> tuple[dict[str, Place], Counter[str]]:
    """The files in several tars, each by the path of its tar below their common folder and its own path; see below."""
    above = os.path.commonpath([path.parent for path in paths])
    shards = {os.path.relpath(path, above).replace(os.sep, ":"): path for path in paths}
    places: dict[str, Place] = {}
    unread: Counter[str] = Counter()
    for shard, path in shards.items():
        inside, without = _places(path)
        places.update({f"{shard}/{member}": place for member, place in inside.items()})
        unread.update(without)
    return places, unread


def _places(path: Path) -> tuple[dict[str, Place], Counter[str]]:
    """Place of each file in a tar, by its path there, and the number of members that have no content here."""
    try:
        with tarfile.open(path, "r:") as archive:
            members = [info for info in archive if not info.isdir()]
            _check_end(path, archive.offset)
    except Exception as bad:  # tarfile raises anything for a damaged header
        raise ValueError(
            f"{path} is not a readable tar ({reason_of(bad)}); pack it again, without compression"
        ) from None
    names = [info.name.removeprefix("./") for info in members]
    for name in names:
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name.replace("\\", "/")).parts:
            raise ValueError(f"{path} holds the path {name}, which leaves the archive; pack it again without it")
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{path} holds {twice[0]} more than once, and only the last could be read; pack it again")
    if sparse := next((info.name for info in members if info.issparse()), None):
        raise ValueError(f"{path} holds {sparse} as a sparse file; pack it again without --sparse")
    places = {info.name.removeprefix("./"): (path, info.offset_data, info.size) for info in members if info.isreg()}
    links = {info.name.removeprefix("./"): _target(info) for info in members if info.islnk() or info.issym()}
    for name, target in links.items():
        for _ in range(MOST_LINKS):  # a link may lead to another one
            target = links.get(target, target)
        if target in places:
            places[name] = places[target]
    unread = Counter("a link to nothing here" if name in links else "no file" for name in names if name not in places)
    return {name: places[name] for name in names if name in places}, unread


def _target(link: tarfile.TarInfo) -> str:
    """The path in the tar that a link leads to."""
    if link.islnk():
        return link.linkname.removeprefix("./")
    return posixpath.normpath(posixpath.join(posixpath.dirname(link.name), link.linkname))


def _check_end(path: Path, end: int) -> None:
    """ValueError unless zeros alone stand from byte `end` on.  tarfile takes a damaged header for the end, too."""
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(END_BYTES)
    if len(rest) < tarfile.BLOCKSIZE or any(rest[: tarfile.BLOCKSIZE]):
        raise ValueError(f"it is cut or damaged at byte {end:,}, where neither a member nor the end begins")
    if any(rest):
        raise ValueError(f"another archive begins behind its end at byte {end:,}")


def _sample(member: str) -> str:
    """The path of a member up to the first dot of its name."""
    path = PurePosixPath(member)
    return str(path.with_name(path.name.partition(".")[0] or path.name))
