"""Make a generator, and the feature networks of its reward and its judge, from images.

    python -m sit_rl.pretrain base --images FOLDER --out my-model        a generator of your own images
    torchrun --nproc-per-node 2 -m sit_rl.pretrain base --images …       the same on several processes
    python -m sit_rl.pretrain features --images FOLDER --out my-networks   feature networks alone

Images are a folder of classes, a flat folder, a .zip, a .tar of WebDataset or its shards, or an .npz. The same command
resumes. Then torchrun sit_rl/train.py --checkpoint my-model --images FOLDER improves the generator.

--config FILE gives any of a command's flags as fields of a YAML file, such as `heldout_fraction: 0.2`; flags win.

Without --images these commands make the embedded assets of Fashion-MNIST, in this order:

    python -m sit_rl.pretrain images --source DIR      DIR holds Fashion-MNIST's four *-ubyte.gz files
    python -m sit_rl.pretrain features [--source DIR]  fashion-a and fashion-b
    python -m sit_rl.pretrain features --networks fashion-c fashion-d --passes 10
    python -m sit_rl.pretrain features --networks fashion-e
    python -m sit_rl.pretrain features --networks fashion-f --passes 10    learns EfficientNet-Lite0's features
    python -m sit_rl.pretrain base [--source DIR]      SiT by flow matching, and the curve of its held-out FD

Without --source, the features and the base train on the 10,000 embedded images. The committed files of fashion-a,
fashion-b and the base were made with all 60,000.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass, fields
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, Literal, cast, get_type_hints

import torch
import tyro

from fastfid.cli.command_line import parse
from fastfid.features.fashion import ASSETS as FEATURE_ASSETS
from sit_rl.command_line import run_command, value_of
from sit_rl.components.image_sets import ASSETS
from sit_rl.config_files import values_in
from sit_rl.pretraining.embedded import train_fashion_base, train_fashion_nets, write_subsets
from sit_rl.pretraining.feature_networks import Schedule
from sit_rl.pretraining.flow import FlowSettings
from sit_rl.pretraining.options import OwnOptions, pretrain_own, train_own_networks
from sit_rl.pretraining.plan import Choices
from sit_rl.ranks.process_group import process_group, world_size

# Of the embedded base. After 192,000 images, FD was 8.4 with a batch of 64 and 14.1 with 128.
ITERATIONS, BATCH, LR, EMA = 24_000, 64, 2e-3, 0.999
CURVE_EVERY, CURVE_IMAGES = 2_400, 2_500
CPU = torch.device("cpu")


@dataclass
class ConfigFlag:
    """The flag that names a file of the others."""

    config: Path | None = None
    """YAML file with any of these fields; flags win"""


@dataclass
class ImageFlags:
    """Flags of `images`."""

    source: Path
    """folder with the four official .gz files"""
    out: Path = ASSETS
    """folder of the subsets"""
    train: int = 10_000
    """images, from the official training split"""
    heldout: int = 5_000
    """images, from the official test split"""


@dataclass
class Images(ConfigFlag, ImageFlags):
    """Take balanced subsets of Fashion-MNIST's official files."""

    def run(self, device: torch.device = CPU) -> None:
        """Write fashion_mnist_{train,heldout}.npz."""
        write_subsets(self.source, self.out, self.train, self.heldout)


@dataclass
class OwnImageFlags:
    """Flags about a user's own images."""

    images: Path | None = None
    """your images: a folder of classes, a flat folder, .zip, .npz, .npy, .tar (WebDataset), or its shards"""
    heldout: Path | None = None
    """held-out images in a folder or archive of their own; default: a part of --images"""
    heldout_fraction: float = 0.15
    """part of --images that is held out; groups of near-duplicates stay together"""
    size: int = 0
    """side of the images that are made, pixels; 0: their own, or the larger of 64 and 32 that most of them reach"""
    crop: Literal["centre", "pad", "squeeze"] = "centre"
    """how an image becomes square: cut out of its centre, filled up with white, or squeezed"""
    class_folders: bool = False
    """folders that look like parts of a set (00000, chunk_3, a7, train) are classes, too"""
    threads: int = 0
    """CPU threads of a rank; 0: the cores divided among the ranks"""

    def options(self, images: Path, out: Path, seed: int) -> OwnOptions:
        """The flags of a command that has --images."""
        return OwnOptions(
            images, out, self.heldout, self.heldout_fraction, self.size, self.crop, self.class_folders, seed
        )


@dataclass
class FeatureFlags:
    """Flags of `features`."""

    source: Path | None = None
    """folder with the official files of Fashion-MNIST; default: the embedded subset"""
    out: Path = FEATURE_ASSETS
    """folder of the networks"""
    networks: tuple[str, ...] = ("fashion-a", "fashion-b")
    """of Fashion-MNIST: fashion-a to fashion-f"""
    passes: int = 6
    """over the images of Fashion-MNIST"""
    batch: int = 128
    """of Fashion-MNIST"""
    lr: float = 2e-3
    """peak of a one-cycle schedule, of Fashion-MNIST"""
    seed: int = 0
    """of the networks of --images, and of their split"""


@dataclass
class Features(ConfigFlag, OwnImageFlags, FeatureFlags):
    """Train a feature network for the reward and one for the judge."""

    def run(self, device: torch.device = CPU) -> None:
        """Write reward.safetensors and judge.safetensors of --images, or the named networks of Fashion-MNIST."""
        if self.images is None:
            train_fashion_nets(self.source, self.out, self.networks, Schedule(self.passes, self.batch, self.lr))
        else:
            _refuse_source(self.source)
            out = ASSETS if self.out == FEATURE_ASSETS else self.out
            train_own_networks(self.options(self.images, out, self.seed))


@dataclass
class BaseFlags:
    """Flags of `base`."""

    source: Path | None = None
    """folder with the official files of Fashion-MNIST; default: the embedded subset"""
    out: Path = ASSETS
    """folder of the model; of your own images always your own folder"""
    iterations: int | None = None
    """default: 24,000 for Fashion-MNIST, else as many as 150 passes have, within bounds"""
    batch: int = BATCH
    """images of an iteration"""
    lr: float | None = None
    """peak; linear warm-up over the first 2%, then cosine to zero; default: 2e-3, less for wide models"""
    ema: float | None = None
    """decay per iteration of the averaged weights; default: 0.999, or less for fewer than 10,000 iterations of yours"""
    seed: int = 0
    """of the weights, the noise and the split of the images"""
    curve_every: int | None = None
    """iterations between points of the held-out FD curve; default: a tenth of all"""
    curve_images: int | None = None
    """default: 2,500 for Fashion-MNIST, else 500"""


@dataclass
class Base(ConfigFlag, OwnImageFlags, BaseFlags):
    """Train a generator of your own images by flow matching, or the embedded base model."""

    vae: Path | None = None
    """folder of a diffusers AutoencoderKL: the generator learns its latents"""
    patch: int = 0
    """side of a patch; 0: chosen from the images"""
    width: int = 0
    """of the generator; 0: chosen from the images"""
    depth: int = 0
    """blocks of the generator; 0: 4"""
    mirror: bool = False
    """also learn mirrored images"""

    def run(self, device: torch.device = CPU) -> None:
        """Write the model's folder of --images, or base.safetensors and base_curve.csv."""
        if self.images is None:
            self._embedded()
            return
        _refuse_source(self.source)
        given = Choices(
            self.patch, self.width, self.depth, self.iterations, self.lr, self.batch, self.ema, self.seed,
            self.vae, self.mirror, self.curve_every, self.curve_images,
        )  # fmt: skip
        options = self.options(self.images, self.out, self.seed)
        pretrain_own(options, given, device)

    def _embedded(self) -> None:
        if self.batch % world_size():
            raise ValueError(f"--batch {self.batch} does not divide among {world_size()} processes; use a multiple")
        for flag, value in (("--heldout", self.heldout), ("--vae", self.vae), ("--size", self.size or None)):
            if value is not None:
                raise ValueError(f"{flag} {value} is about your own images; pass them by --images")
        ema = EMA if self.ema is None else self.ema
        settings = FlowSettings(self.iterations or ITERATIONS, self.batch, self.lr or LR, ema, self.seed)
        every, images = self.curve_every or CURVE_EVERY, self.curve_images or CURVE_IMAGES
        train_fashion_base(self.source, self.out, settings, every, images)


def _refuse_source(source: Path | None) -> None:
    """ValueError if both kinds of images were given."""
    if source is not None:
        raise ValueError(f"--source {source} is of Fashion-MNIST and --images are your own; pass one of them")


COMMANDS: dict[str, type[Images] | type[Features] | type[Base]] = {"base": Base, "features": Features, "images": Images}


def parse_command(words: list[str]) -> Images | Features | Base:
    """The command of a command line; ValueError for a file of --config that cannot be used."""
    forms = tuple(_form(name, words) for name in COMMANDS)
    return cast("Images | Features | Base", parse(reduce(or_, forms), words, description=__doc__))


def _form(name: str, words: list[str]) -> Any:
    """What a subcommand parses into; the command that the words name has the defaults of its --config."""
    kind = COMMANDS[name]
    path = value_of(words, "--config") if words[:1] == [name] else None
    if not path:
        return Annotated[kind, tyro.conf.subcommand(name)]
    hints = get_type_hints(kind)
    given = values_in(Path(path), {field.name: hints[field.name] for field in fields(kind) if field.name != "config"})
    needed = {field.name: tyro.MISSING for field in fields(kind) if field.default is MISSING}
    return Annotated[kind, tyro.conf.subcommand(name, default=kind(**(needed | given)))]


def main(argv: list[str] | None = None) -> None:
    """Parse and run one of images, features, base. An expected error is one sentence."""

    def work() -> None:
        command = parse_command(sys.argv[1:] if argv is None else argv)
        with process_group(getattr(command, "threads", 0)) as device:
            command.run(device)

    run_command(work, interrupted="interrupted; the same command goes on from the last checkpoint")


if __name__ == "__main__":
    main()
