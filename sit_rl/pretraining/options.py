"""From the flags of `sit_rl.pretrain` to a plan, checked before any work, and the folder that it is carried out in."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from fastfid.runtime.distributed import from_main
from fastfid.runtime.errors import first_line
from fastfid.runtime.input_files import json_of, read_text
from sit_rl.components.image_sets import ASSETS
from sit_rl.components.own_images import (
    FEWEST,
    OwnImages,
    Source,
    check_classes,
    open_source,
    prepare,
    record_of,
    sides_of,
    split_by_fraction,
    split_by_source,
)
from sit_rl.files.atomic import write_json
from sit_rl.files.checksums import content_hash
from sit_rl.files.paths import require_extra, require_paths, require_utf8
from sit_rl.learner import checkpoint
from sit_rl.models.autoencoder import load_encoder
from sit_rl.models.card import CARD, CROPS, WEIGHTS
from sit_rl.pretraining.networks import ROLES, choose_networks, config_of, steps_of, train_network
from sit_rl.pretraining.own import CHECKPOINTS, CURVE, OwnPlan, pretrain, statistics_file
from sit_rl.pretraining.plan import Choices, choose_size, flow_settings, model_config, parameters_of
from sit_rl.ranks.messages import say
from sit_rl.ranks.preemption import Preempted
from sit_rl.ranks.process_group import world_size
from sit_rl.runs.forecast import aligned
from sit_rl.runs.run_folder import locked_folder

PLAN = "pretrain.json"
# What a pretraining leaves in its folder, beside PLAN. A folder that has one of them without PLAN is not its own.
LEAVES = (CARD, WEIGHTS, CURVE, CHECKPOINTS)
POINTS = 10  # of the curve
CURVE_IMAGES = 500
SAVES = 40  # checkpoints during a pretraining, at least


@dataclass(frozen=True)
class OwnOptions:
    """What a user may say of the images; see `sit_rl.pretrain base --help`."""

    images: Path
    out: Path
    heldout: Path | None
    heldout_fraction: float
    size: int
    crop: Literal["centre", "pad", "squeeze"]
    class_folders: bool
    seed: int


def load_images(options: OwnOptions) -> tuple[OwnImages, list[tuple[str, str]]]:
    """Read, prepare and split the images, and lines of the plan that say what was done; errors before any work."""
    require_paths([("--images", options.images), ("--heldout", options.heldout)])
    if options.size and not 8 <= options.size <= 1024:
        raise ValueError(f"--size is {options.size}; it must be between 8 and 1024 pixels")
    if not 0 < options.heldout_fraction < 1:
        raise ValueError(f"--heldout-fraction is {options.heldout_fraction}; it must be above 0 and below 1")
    source = open_source("--images", options.images, options.class_folders)
    if len(source) < FEWEST:
        count = "1 image" if len(source) == 1 else f"{len(source)} images"
        raise ValueError(f"--images {options.images} holds {count}; a generator needs at least {FEWEST}")
    check_classes(source)
    labelled = source.labels is not None and len(set(source.labels)) > 1
    size, why = (options.size, "--size") if options.size else choose_size(sides_of(source))
    pixels = prepare(source, size, options.crop)
    if options.heldout is None:
        images = split_by_fraction(source, pixels, options.heldout_fraction, options.seed, labelled)
    else:
        other = open_source("--heldout", options.heldout, options.class_folders)
        others = prepare(other, size, options.crop, pixels.shape[1])
        images = split_by_source(source, pixels, other, others, labelled)
    return images, _image_lines(options, source, images, why)


def _image_lines(options: OwnOptions, source: Source, images: OwnImages, why: str) -> list[tuple[str, str]]:
    """The plan's lines about the images."""
    channels, _, size = images.train.images.shape[1:]
    colour = "grey" if channels == 1 else "colour"
    if images.labelled:
        classes = f"{len(images.classes)}: {', '.join(images.classes[:5])}{', …' if len(images.classes) > 5 else ''}"
    elif source.labels is None:
        classes = "none; trained without labels"
    else:
        classes = f"all images are of the class {source.labels[0]!r}; trained without labels"
    return [
        ("images", f"{options.images}: {len(source)}, made {colour} of {size}×{size} ({why}); {CROPS[options.crop]}"),
        ("classes", classes),
        ("split", f"{len(images.train)} to train on, {len(images.heldout)} held out: {images.split.by}"),
        ("duplicates", images.split.near_duplicates),
    ]


def pretrain_own(options: OwnOptions, given: Choices, device: torch.device) -> None:
    """Print the plan, then train, or go on with a pretraining of the same plan; a finished one is left as it is."""
    check_out(options.out)
    if given.vae is not None:
        require_paths([("--vae", given.vae)])
        require_extra("--vae")
    images, told = load_images(options)
    plan = _plan(options, given, images, device)
    with suppress(Preempted), locked_folder(options.out):
        saved = from_main(lambda: _saved(plan))
        if saved == "done":
            say(f"{options.out} is finished; delete it, or choose another --out, to train again")
            return
        say(aligned(dict([*told, *_described(plan, images, device)])))
        try:
            card = pretrain(plan, images, device, None if saved is None else Path(saved))
        except Preempted:
            say(f"stopped on request; {options.out} is saved, the same command resumes")
            raise
        say(
            f"\nmodel       {options.out}: held-out FD {card.training['heldout_fd']:.3f} after "
            f"{card.training['seconds'] / 60:.1f} minutes; peak memory {card.training['peak_megabytes']} MB a rank\n"
            f"next        torchrun sit_rl/train.py --checkpoint {options.out} --images {options.images}"
        )


def train_own_networks(options: OwnOptions) -> None:
    """Train only the feature networks, into --out."""
    check_out(options.out)
    images, told = load_images(options)
    say(aligned(dict([*told, ("networks", _networks_line(images))])))
    with locked_folder(options.out):
        for role in ROLES:
            path = options.out / f"{role}.safetensors"
            say(from_main(partial(train_network, role, images.train, images.heldout, options.seed, path)))
            say(f"use it as   --reward-features small:{path}, or fastfid --network small:{path}")


def check_out(out: Path) -> None:
    """ValueError without a folder of one's own for --out."""
    if out == ASSETS or out.resolve() == ASSETS.resolve():
        raise ValueError("--out is missing: name the folder of the new model, such as --out my-model")
    require_utf8("--out", out)
    if out.is_file():
        raise ValueError(f"--out {out} is a file; choose a folder")


def _plan(options: OwnOptions, given: Choices, images: OwnImages, device: torch.device) -> OwnPlan:
    """The plan, with every number chosen; ValueError for numbers that do not fit."""
    if given.batch < 2 or given.batch % world_size():
        raise ValueError(
            f"--batch {given.batch} does not divide among {world_size()} processes; use a multiple above 1"
        )
    for flag, count in (("--iterations", given.iterations), ("--curve-every", given.curve_every)):
        if count is not None and count < 1:
            raise ValueError(f"{flag} is {count}; it must be at least 1")
    if given.lr is not None and not 0 < given.lr < float("inf"):
        raise ValueError(f"--lr is {given.lr}; it must be a positive number")
    if given.ema is not None and not 0 <= given.ema < 1:
        raise ValueError(f"--ema is {given.ema}; it must be in [0, 1)")
    shape = tuple(images.train.images.shape[1:])
    if given.vae is not None:
        shape = _latent_shape(given.vae, images, device)
    config = model_config(shape, len(images.classes), given)  # type: ignore[arg-type]  # three numbers
    settings = flow_settings(len(images.train), config.width, given)
    chosen = choose_networks(len(images.heldout))
    return OwnPlan(
        out=options.out,
        source=str(options.images),
        crop=options.crop,
        shape=config,
        settings=settings,
        networks=chosen.names,
        train=record_of(images.train),
        heldout=record_of(images.heldout),
        vae=None if given.vae is None else (given.vae, content_hash(given.vae)),
        mirror=given.mirror,
        curve_every=given.curve_every or max(1, settings.iterations // POINTS),
        curve_images=max(given.curve_images or CURVE_IMAGES, 2),
        save_every=max(1, settings.iterations // SAVES),
    )


def _latent_shape(vae: Path, images: OwnImages, device: torch.device) -> tuple[int, ...]:
    """Shape of the latents of an image; ValueError if the autoencoder does not fit the images."""
    if images.train.images.shape[1] != 3:
        raise ValueError(f"--vae {vae} encodes colour images, and these are grey; leave --vae out")
    encode = load_encoder(vae, device)
    try:
        return tuple(encode(images.train.images[:1], None).shape[1:])
    except RuntimeError as error:
        size = images.train.images.shape[2]
        raise ValueError(
            f"--vae {vae} does not encode images of {size}×{size} ({first_line(error)}); choose another --size"
        ) from None


def _described(plan: OwnPlan, images: OwnImages, device: torch.device) -> list[tuple[str, str]]:
    """The plan's lines about model, optimisation and networks."""
    c, s = plan.shape, plan.settings
    kind = "latents" if plan.vae else "pixels"
    tokens = (c.image_size // c.patch_size) ** 2
    passes = s.iterations * s.batch / len(images.train)
    return [
        ("networks", _networks_line(images)),
        ("generator", f"SiT of {parameters_of(c) / 1e6:.2f}M parameters for {kind} {c.image_shape}: width {c.width}, "
         f"depth {c.depth}, patch {c.patch_size} ({tokens} tokens), on {device} × {world_size()}"),
        ("training", f"{s.iterations} iterations of {s.batch} images ({passes:.0f} passes), learning rate {s.lr:.1e}"),
        ("output", f"{plan.out}; every {plan.curve_every} iterations {plan.curve_images} samples are judged, and shown "
         "in samples/"),
    ]  # fmt: skip


def _networks_line(images: OwnImages) -> str:
    """Which networks, and how they are trained."""
    chosen = choose_networks(len(images.heldout))
    how = "as classifiers" if images.labelled else "without labels, by NT-Xent"
    dims = {role: config_of(role, images.train, len(images.heldout)).dim for role in ROLES}
    shown = " and ".join(f"{role} of {dims[role]} features" for role in ROLES if "." in chosen.names[role])
    return f"{chosen.reason}; {shown}, {how}, {steps_of(len(images.train))} steps each"


def _saved(plan: OwnPlan) -> str | None:
    """The checkpoint to go on from, "done" for a finished pretraining, None for a fresh one; the plan is written.

    ValueError for a folder that holds something else.
    """
    record = json.loads(json.dumps(_fingerprint(plan)))
    path = plan.out / PLAN
    if not path.is_file():
        there = next((plan.out / name for name in LEAVES if (plan.out / name).exists()), None)
        if there is not None:
            raise ValueError(
                f"{there} is in the way and {plan.out} is no folder of a pretraining; choose another --out"
            )
        write_json(path, record)
        return None
    try:
        earlier = json_of(read_text(path))
        changed = next((key for key, value in record.items() if earlier.get(key) != value), None)
    except (ValueError, AttributeError):
        raise ValueError(f"{path} is damaged; delete {plan.out}, or choose another --out") from None
    if changed is not None:
        raise ValueError(f"{plan.out} holds a pretraining of another {changed}; choose another --out, or delete it")
    checkpoint.clean(plan.out / CHECKPOINTS)
    saved = checkpoint.latest(plan.out / CHECKPOINTS)
    if saved is None:
        return None
    finished = checkpoint.load_values(saved).get("iteration") == plan.settings.iterations
    whole = all((plan.out / name).is_file() for name in (CARD, *map(statistics_file, ROLES)))
    return "done" if finished and whole else str(saved)


def _fingerprint(plan: OwnPlan) -> dict[str, Any]:
    """What must not change between two parts of a pretraining, by words for the error."""
    return {
        "shape of the model": asdict(plan.shape),
        "optimisation (--iterations, --batch, --lr, --ema, --seed)": asdict(plan.settings),
        "set of networks": plan.networks,
        "autoencoder (--vae)": plan.vae and plan.vae[1],
        "--mirror": plan.mirror,
        "curve (--curve-every, --curve-images)": [plan.curve_every, plan.curve_images],
        "set of images, or way to prepare or split them": {
            "crop": plan.crop,
            "train": asdict(plan.train),
            "heldout": asdict(plan.heldout),
        },
    }
