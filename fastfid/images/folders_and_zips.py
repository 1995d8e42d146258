"""Encoded images of a folder or a zip, sorted by path and decoded by threads; hostile and damaged files are named.

Files are sorted by their path below the root as text, so a folder and a zip of it give the same order.  If all images
lie in class folders, the folder names are the labels.  Folders that are parts of a set (00000, chunk_3, a7, train) are
not classes, unless the caller says so.

Bounds.  A file may hold at most MAX_PIXELS pixels and MAX_FILE_BYTES bytes; beyond FREE_PIXELS, at most PIXELS_A_BYTE
pixels for each of its bytes.  A member of a zip above FREE_BYTES may expand at most MAX_INFLATION times.  Larger claims
are refused before anything is inflated.  Nothing is written to disk, and archives with paths that leave them are
refused as a whole.

Speed.  Decoders release Python's interpreter lock, but the other work on a small image does not.  So a thread takes
FILES_A_TASK files at a time.  imagecodecs reads small plain PNG and JPEG in half to two thirds of the time
(fast_decode.py).
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np
import torch
from torch import Tensor

from fastfid.images.fast_decode import decode_plain
from fastfid.images.formats import decoded_by_pillow, holds_frames, passed_over, split_by_name
from fastfid.images.source import ImageBlock, ImageSource, checked_size, class_names, counted, reason_of
from fastfid.runtime.hashes import sha256
from fastfid.runtime.input_files import file_bytes
from fastfid.runtime.mapped_arrays import open_numpy

BLOCKS_AHEAD = 1  # encoded blocks that are read in advance; memory does not depend on the number of images
# Names of folders that are parts of a set: of a thousand images each, as 00000/ of StyleGAN and EDM; counted parts; and
# the splits of a data set.
PART = re.compile(r"\d{5,}|(batch|block|bucket|chunk|dir|folder|group|part|rank|shard|split|worker)[-_ ]?\d+", re.I)
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing", "heldout", "held-out"})
HASH = re.compile(r"[0-9a-f]+", re.I)  # digits of a hash, as 00/ to ff/ of content-addressed stores
SHORT_HASH = 3  # digits at most of which all may well be numbers, or all letters
MOST_PATHS = 100  # most paths to one folder; links inside linked folders double them at every level
LABELS = "labels.npy"  # classes of a folder's images in the order of their names, as `sit_rl.sample` writes them
FILES_A_TASK = 32  # files that a thread takes at a time, to spread the cost of passing work to it

MAX_PIXELS = 89_478_485  # Pillow's own threshold of suspicion, a quarter of a GiB of RGB; 9,459 pixels square
FREE_PIXELS = 1 << 24  # 4096 pixels square, 50 MB of RGB; so much may be claimed by a file of any size
PIXELS_A_BYTE = 1032  # deflate's largest factor, so that a PNG of one colour is read at any size
MAX_FILE_BYTES = 3 * MAX_PIXELS + (1 << 20)  # that image as uncompressed BMP or TIFF, with a MiB of headers
MAX_INFLATION = 200  # of a zip's member; deflate reaches 1,032, a photograph stored as BMP 2 to 10
FREE_BYTES = 1 << 20  # smaller members may expand by any factor, as a BMP of one colour does

READING = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe named x.png reads as empty

Read = list[tuple[str, bytes | Exception, bytes]]  # name, bytes and SHA-256 of files, or the error of an unreadable one
Decoded = list[np.ndarray | ValueError]  # images uint8 [C, H, W], or the error of an unreadable one


def decoders(workers: int | None = None) -> int:
    """Threads that decode: `workers`, or one for each usable core up to 8."""
    if workers is None:
        usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return min(8, usable)
    if workers < 1:
        raise ValueError(f"workers is {workers}; at least 1 thread has to decode")
    return workers


class FileImages(ImageSource):
    """Encoded images: sorted member names and a function from a name to its bytes."""

    def __init__(
        self,
        name: str,
        members: list[str],
        read: Callable[[str], bytes],
        skip_corrupt: bool = False,
        workers: int | None = None,
        notes: list[str] | None = None,
        class_folders: bool = False,
        archives: int = 0,
    ):
        """Arguments as in `open_images`; `archives` leading parts of a member's path name its archive, no folder."""
        if not members:
            raise ValueError(
                f"{name} holds no images; expected files ending in .bmp, .jpg, .png, .tif, .webp or another ending of "
                f"a format that Pillow decodes{''.join(f'; {note}' for note in notes or ())}"
            )
        self.name, self.members, self.read = name, sorted(members), read
        self._beside, self._with_frames = list(notes or ()), set[str]()
        self.notes = self._beside
        self.skip_corrupt, self.skipped, self.workers = skip_corrupt, [], decoders(workers)
        self.classes = _class_folders([member.split("/", archives)[-1] for member in self.members])
        if self.classes is not None and not class_folders and _are_parts(set(self.classes)):
            first, last = min(self.classes), max(self.classes)
            self.add_note(
                f"the folders {first} to {last} of {name} are not taken for classes; class_folders=True "
                "(--class-folders) takes them"
            )
            self.classes = None

    def add_note(self, note: str) -> None:
        """Say something about what lies beside the images; `notes` keeps it when images are read."""
        self._beside.append(note)

    def __len__(self) -> int:
        return len(self.members)

    def image_name(self, index: int) -> str:
        """Path of image number `index` below the root."""
        return self.members[index]

    def labels(self, start: int, stop: int) -> list[str] | None:
        """Classes of the images from `start` to `stop`, None where there are none."""
        return self.classes and self.classes[start:stop]

    def image(self, index: int) -> Tensor:
        """Image number `index`, uint8 [C, H, W]."""
        ((member, encoded, _),) = self._read([self.members[index]])
        self._tell_frames()
        return torch.from_numpy(self._decode(member, encoded).copy())

    def batches(self, size: int) -> Iterator[Tensor]:
        """Yield all images in order, `size` at a time, the last batch shorter."""
        expected = None
        for block in self.blocks(size):
            images, _ = block.decode(expected)
            expected = expected or tuple(images.shape[1:])
            yield images

    def blocks(self, size: int, start: int = 0, stop: int | None = None) -> Iterator[ImageBlock]:
        """Blocks of files; threads decode a block and read the bytes of the next one."""
        stop = len(self) if stop is None else stop
        ahead: deque[tuple[int, list[str], list[Future[Read]]]] = deque()
        self.skipped: list[str] = []
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="decode")  # ends when no block holds it
        try:
            for first in range(start, stop, checked_size(size)):
                members = self.members[first : min(first + size, stop)]
                tasks = [members[i : i + FILES_A_TASK] for i in range(0, len(members), FILES_A_TASK)]
                ahead.append((first, members, [pool.submit(self._read, task) for task in tasks]))
                if len(ahead) > BLOCKS_AHEAD:
                    yield self._block(pool, *ahead.popleft())
            while ahead:
                yield self._block(pool, *ahead.popleft())
        finally:  # the caller stopped early: cancel what is not read yet
            for *_, reads in ahead:
                for read in reads:
                    read.cancel()

    def _read(self, members: list[str]) -> Read:
        """Name, bytes and SHA-256 of each member; an error of reading replaces its bytes."""
        encoded = [_read_encoded(self.read, member) for member in members]
        self._with_frames.update(
            m for m, e in zip(members, encoded, strict=True) if isinstance(e, bytes) and holds_frames(e)
        )
        digests = [bytes.fromhex(sha256([e])) if isinstance(e, bytes) else b"unreadable" for e in encoded]
        return list(zip(members, encoded, digests, strict=True))

    def _tell_frames(self) -> None:
        """Note the images so far of which only the first frame is read."""
        found = sorted(self._with_frames.copy())  # other threads may add to it
        if found:
            images = counted(len(found), "image")
            note = f"of {images} with several frames in {self.name} the first frame is read: {found[0]}"
            self.notes = [*self._beside, note]

    def _block(self, pool: ThreadPoolExecutor, start: int, members: list[str], reads: list[Future[Read]]) -> ImageBlock:
        tasks = [read.result() for read in reads]
        self._tell_frames()
        digest = sha256(digest for task in tasks for *_, digest in task)
        decoding: list[Future[Decoded]] = []

        def prefetch() -> None:
            if not decoding:
                decoding.extend(pool.submit(self._decoded, task) for task in tasks)

        def decode(expected: tuple[int, ...] | None) -> tuple[Tensor, list[int]]:
            images, kept = decode_each()
            return self._stacked(images, [members[i] for i in kept], expected), kept

        def decode_each() -> tuple[list[Tensor], list[int]]:
            prefetch()
            return self._readable([image for task in decoding for image in task.result()])

        labels = self.labels(start, start + len(members))
        return ImageBlock(start, members, digest, decode, prefetch, labels, decode_each)

    def _decoded(self, task: Read) -> Decoded:
        """Each image of a task, or its error."""
        found: Decoded = []
        for member, encoded, _ in task:
            try:
                found.append(self._decode(member, encoded))
            except ValueError as unfit:
                found.append(unfit)
        return found

    def _readable(self, decoded: Decoded) -> tuple[list[Tensor], list[int]]:
        """The images that could be decoded, and their positions; the others are noted, or the first one is raised."""
        images, kept = [], []
        for position, image in enumerate(decoded):
            if isinstance(image, ValueError):
                if not self.skip_corrupt:
                    raise image
                self.skipped.append(str(image))
                continue
            images.append(torch.from_numpy(image if image.flags.writeable else image.copy()))
            kept.append(position)
        return images, kept

    def _stacked(self, images: list[Tensor], members: list[str], expected: tuple[int, ...] | None) -> Tensor:
        """The images [m, C, H, W] of one shape; ValueError names the first of another."""
        if not images:
            return torch.empty(0, *(expected or (3, 1, 1)), dtype=torch.uint8)
        expected = expected or tuple(images[0].shape)
        for member, image in zip(members, images, strict=True):
            self._check_shape(member, tuple(image.shape), expected)
        return torch.stack(images)

    def _decode(self, member: str, encoded: bytes | Exception) -> np.ndarray:
        """One image, uint8 [C, H, W]; ValueError names it and says what to do."""
        try:
            if isinstance(encoded, Exception):
                raise encoded
            most = min(MAX_PIXELS, FREE_PIXELS + PIXELS_A_BYTE * len(encoded))
            pixels = decode_plain(encoded, most)
            if pixels is None:
                pixels = decoded_by_pillow(encoded, most)
        except Exception as bad:  # decoders of damaged images and archives raise anything
            raise ValueError(
                f"{member} in {self.name} cannot be read as an 8-bit image ({reason_of(bad)}); "
                "write it again or remove it"
            ) from None
        return pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1)

    def _check_shape(self, member: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
        if shape[1:] != expected[1:]:
            raise ValueError(
                f"{member} in {self.name} is {shape[2]}x{shape[1]} pixels, {self.members[0]} is "
                f"{expected[2]}x{expected[1]}; resize all images to one size, or use a protocol that resizes each "
                "image on its own, such as clean (--protocol clean)"
            )
        if shape[0] != expected[0]:
            raise ValueError(
                f"{member} in {self.name} has {shape[0]} channels, {self.members[0]} has {expected[0]}; "
                "convert all images to RGB or all to grey"
            )


def _read_encoded(read: Callable[[str], bytes], member: str) -> bytes | Exception:
    """Bytes of a file, or the error of reading it, which is reported when the image is decoded, in order."""
    try:
        return read(member)
    except Exception as unreadable:  # a file system or a damaged archive may raise anything
        return unreadable


def open_folder(path: Path, skip_corrupt: bool, workers: int | None, class_folders: bool = False) -> FileImages:
    """All images below `path`."""
    files, notes = files_below(path)
    members, others = split_by_name([file for file in files if file != LABELS])
    notes = [note for note in (passed_over(str(path), others), *notes) if note]

    def read(member: str) -> bytes:
        # Four system calls, each of which releases the interpreter lock; a file object makes seven.
        file = os.open(f"{path}/{member}", READING)
        try:
            size = os.fstat(file).st_size
            if size > MAX_FILE_BYTES:
                raise ValueError(f"it holds {size} bytes, more than {MAX_FILE_BYTES}")
            return os.read(file, size)
        finally:
            os.close(file)

    images = FileImages(str(path), members, read, skip_corrupt, workers, notes, class_folders)
    if LABELS in files:
        _take_labels(images, path / LABELS)
    return images


def _take_labels(images: FileImages, path: Path) -> None:
    """Take the classes of a folder's images from a file beside them; a note says why where they do not fit."""
    members = images.members
    try:
        file_bytes(path)  # refuses pipes and devices
        labels = open_numpy(path)
        fits = isinstance(labels, np.ndarray) and labels.shape == (len(members),)
        classes = class_names(labels) if fits else None
    except Exception as bad:  # NumPy raises anything for a damaged file, and for texts of invalid characters
        images.add_note(f"{path} is not read as classes: {reason_of(bad)}")
        return
    numbers = [int(stem) for member in members if (stem := PurePosixPath(member).stem).isdecimal()]
    if images.classes is not None:
        reason = "the folders are the classes"
    elif classes is None:
        held = f"its shape is {labels.shape}" if isinstance(labels, np.ndarray) else "it is an npz"
        reason = f"{held}, and there are {counted(len(members), 'image')}"
    elif any("/" in member for member in members) or numbers != sorted(numbers):
        reason = "the order of the images' names is not that of their numbers"
    else:
        images.classes = classes
        return
    images.add_note(f"{path} is not read as classes: {reason}")


def files_below(path: Path) -> tuple[list[str], list[str]]:
    """Paths of all files below `path`, relative to it, and sentences on folders that links reach several times.

    Hidden folders are not entered; they are listed among the files, so that they are counted.  OSError for a folder
    that cannot be listed, a link to a folder above it, and more than MOST_PATHS paths to one folder.
    """
    files: list[str] = []
    ways: Counter[str] = Counter()
    waiting: list[tuple[str, tuple[str, ...]]] = [("", (os.path.realpath(path),))]
    while waiting:
        below, reals = waiting.pop()  # path of a folder below `path`, real paths from there down to this folder
        ways[reals[-1]] += 1
        if ways[reals[-1]] > MOST_PATHS:
            raise OSError(f"more than {MOST_PATHS} ways lead to {reals[-1]} by links in {path}; remove the links")
        with os.scandir(path / below) as entries:
            for entry in entries:
                name = f"{below}{entry.name}"
                if entry.name.startswith(".") or not _is_folder(entry):
                    files.append(name)
                    continue
                real = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(reals[-1], entry.name)
                if any(f"{above}{os.sep}".startswith(f"{real.rstrip(os.sep)}{os.sep}") for above in reals):
                    raise OSError(f"{entry.path} is a link to a folder that holds it; remove the link")
                waiting.append((f"{name}/", (*reals, real)))
    several = [(real, count) for real, count in ways.most_common() if count > 1]
    if not several:
        return files, []
    real, count = several[0]
    return files, [f"{counted(len(several), 'folder')} in {path} count several times by links: {real} {count} times"]


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether this is a folder or a link to one; False for a broken link."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def open_zip(path: Path, skip_corrupt: bool, workers: int | None, class_folders: bool = False) -> FileImages:
    """All images of a zip, read from it directly; ValueError for a damaged archive or one whose paths leave it."""
    try:
        archive = zipfile.ZipFile(path)
    except Exception as bad:  # zipfile raises anything for a damaged directory
        raise ValueError(f"{path} is not a readable zip ({reason_of(bad)}); pack it again") from None
    members = [info.filename for info in archive.infolist() if info.filename and not info.is_dir()]
    for member in members:
        # Nothing is unpacked, but an archive whose paths leave its folder is hostile.
        if PurePosixPath(member).is_absolute() or ".." in PurePosixPath(member.replace("\\", "/")).parts:
            raise ValueError(f"{path} holds the path {member}, which leaves the archive; pack it again without it")
    members, others = split_by_name(members)
    if twice := [member for member, count in Counter(members).items() if count > 1]:
        raise ValueError(f"{path} holds {twice[0]} more than once, and only the last could be read; pack it again")

    def read(member: str) -> bytes:
        info = archive.getinfo(member)
        limit = min(MAX_FILE_BYTES, FREE_BYTES + MAX_INFLATION * info.compress_size)
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # Python inflates these without bound
            raise ValueError("it is packed by another method than deflate; pack it again")
        if info.file_size > limit:
            raise ValueError(f"{info.compress_size} bytes claim to inflate to {info.file_size}, as a zip bomb does")
        with archive.open(info) as file:
            return file.read(info.file_size)  # read() would inflate everything, whatever size is claimed

    notes = [note] if (note := passed_over(str(path), others)) else []
    return FileImages(str(path), members, read, skip_corrupt, workers, notes, class_folders)


def _are_parts(names: set[str]) -> bool:
    """Whether all folders look like parts of a set: numbered, the splits of a data set, or named by hashes.

    Names by hashes have one length, and both letters and digits among them; the classes 0 to 9 are no hashes.  Of long
    names most have both, as five of six hashes of four digits have.
    """
    if all(map(PART.fullmatch, names)) or {name.lower() for name in names} <= SPLITS:
        return True
    if not all(map(HASH.fullmatch, names)) or len({len(name) for name in names}) > 1:
        return False
    together, mixed = "".join(names), sum(not (name.isdigit() or name.isalpha()) for name in names)
    long = len(together) > SHORT_HASH * len(names)
    return 2 * mixed > len(names) if long else not (together.isdigit() or together.isalpha())


def _class_folders(members: list[str]) -> list[str] | None:
    """The folder of each member below the common root; None if some are in none, or all in the same one."""
    folders = [PurePosixPath(member).parts[:-1] for member in members]
    common = len(os.path.commonprefix(folders))
    if any(len(folder) == common for folder in folders):
        return None
    return [folder[common] for folder in folders]
