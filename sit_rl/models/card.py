"""A model's folder: its weights, and a card that says which images it makes and which it was trained on.

card.json            this module's `ModelCard`
model.safetensors    the averaged weights
reward.safetensors, judge.safetensors    feature networks that were trained on the same images
statistics-*.npz     moments of the training images, as `fastfid` reads them
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

from fastfid.runtime.errors import one_line
from fastfid.runtime.input_files import json_of, read_text, reading
from sit_rl.files.checksums import content_hash
from sit_rl.models.sit import SiT

CARD, WEIGHTS = "card.json", "model.safetensors"
# How an image becomes a square, by name, with the sentence that the plan prints.
CROPS = {
    "centre": "the largest square in the centre is cut out",
    "pad": "white margins make it square",
    "squeeze": "it is squeezed to a square",
}
SCHEMA = "sit_rl.model/1"  # the number grows when a key changes its meaning
# Bytes of a card that are read: the names of a million held-out files take fewer.
LONGEST_CARD = 1 << 26


@dataclass(frozen=True)
class SetRecord:
    """A set of images as the model saw it: how many, and the SHA-256 of their pixels and labels."""

    count: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """Which images were held out.

    by               how they were chosen, as a sentence
    heldout_source   their own folder or archive, an absolute path; None: they are part of the images
    heldout          names of the held-out images in the images; empty with a source of their own
    left_out         names of images that were neither trained on nor held out
    near_duplicates  what was found about near-duplicates, as a sentence
    """

    by: str
    heldout_source: str | None
    heldout: tuple[str, ...]
    left_out: tuple[str, ...]
    near_duplicates: str


@dataclass(frozen=True)
class ModelCard:
    """What a trained model makes, and of what.

    image_shape   (c, h, w) of its images
    sample_shape  (C, H, W) of its samples; the same without an autoencoder
    classes       names of its classes, in the order of their numbers; one name without labels
    labelled      whether the images had labels
    crop          how images become squares, a name of `CROPS`
    vae           folder of the autoencoder, an absolute path, or None
    vae_sha256    of its content, or None
    networks      "reward" and "judge": name of a feature network, or of a file in the model's folder
    images        what the model was trained on, as it was given
    training      what else is known of the training, plain values
    """

    image_shape: tuple[int, int, int]
    sample_shape: tuple[int, int, int]
    classes: tuple[str, ...]
    labelled: bool
    crop: str
    vae: str | None
    vae_sha256: str | None
    networks: dict[str, str]
    images: str
    train: SetRecord
    heldout: SetRecord
    split: Split
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Side of an image, pixels."""
        return self.image_shape[1]

    def to_json(self) -> dict[str, Any]:
        """Plain values for card.json."""
        return {"schema": SCHEMA, **asdict(self)}


def is_model_folder(path: Path | None) -> bool:
    """Whether a path is a folder with a card."""
    return path is not None and (path / CARD).is_file()


def weights_of_model(path: Path) -> Path:
    """The weights file of a model's folder; any other path as it is."""
    return path / WEIGHTS if is_model_folder(path) else path


def read_card(folder: Path) -> ModelCard:
    """The card of a model's folder; ValueError or OSError, which names the file, if it cannot be used."""
    path = folder / CARD
    with reading(path, "make the model again, or choose another --checkpoint"):
        try:
            return _card(json_of(read_text(path, LONGEST_CARD)))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = one_line(error)
            raise ValueError(
                f"{path} is not a card of this version ({reason}); make the model again by sit_rl.pretrain base"
            ) from None


def _card(values: Any) -> ModelCard:
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"its schema is not {SCHEMA}")
    card: ModelCard = _typed(ModelCard, {name: value for name, value in values.items() if name != "schema"}, "the card")
    for name in ("image_shape", "sample_shape"):
        _check_shape(name, getattr(card, name))
    if card.image_shape[0] not in (1, 3):
        raise ValueError(f"image_shape is {list(card.image_shape)}, and images have 1 or 3 channels")
    if card.crop not in CROPS:
        raise ValueError(f"crop is {card.crop!r}, which is none of {', '.join(CROPS)}")
    if not card.classes or len(set(card.classes)) < len(card.classes):
        raise ValueError("classes has no name, or one twice")
    if (card.vae is None) != (card.vae_sha256 is None):
        raise ValueError("it has one of vae and vae_sha256 without the other")
    _check_networks(card.networks)
    for name in ("train", "heldout"):
        if getattr(card, name).count < 1:
            raise ValueError(f"{name} has a count of {getattr(card, name).count}")
    return card


def _typed(kind: Any, values: Any, where: str) -> Any:
    """The dataclass `kind` of a table of its fields; ValueError for a missing or unknown one, or one of another type.

    A list stands for a tuple.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{where} is a {type(values).__name__}, not a table")
    hints = get_type_hints(kind)
    other = sorted(set(values) ^ set(hints))
    if other:
        raise ValueError(f"{where} {'lacks' if other[0] in hints else 'has the unknown entry'} {other[0]}")
    return kind(**{name: _value(hint, values[name], name) for name, hint in hints.items()})


def _value(hint: Any, value: Any, name: str) -> Any:
    kinds = get_args(hint)
    if is_dataclass(hint):
        return _typed(hint, value, name)
    if get_origin(hint) is tuple and isinstance(value, list):
        if kinds[-1] is Ellipsis or len(kinds) == len(value):
            return tuple(_value(kinds[0], each, name) for each in value)
    if get_origin(hint) is dict and isinstance(value, dict):
        return {key: each if kinds[1] is Any else _value(kinds[1], each, name) for key, each in value.items()}
    if type(value) in (kinds if isinstance(hint, UnionType) else (hint,)):
        return value
    raise ValueError(f"{name} is {value!r}")


def _check_shape(name: str, shape: tuple[int, int, int]) -> None:
    channels, height, width = shape
    if min(channels, height, width) < 1 or height != width:
        raise ValueError(f"{name} is {list(shape)}, and images are squares")


def _check_networks(networks: dict[str, str]) -> None:
    if set(networks) != {"reward", "judge"}:
        raise ValueError("networks has other names than reward and judge")
    for name in networks.values():
        if name.endswith(".safetensors") and Path(name).name != name:
            raise ValueError(f"networks has {name}, and files of networks lie beside the card")


def check_card(card: ModelCard, model: SiT, folder: Path | None, vae: Path | None) -> None:
    """ValueError, before any work, if weights or autoencoder are not those of the card in `folder`."""
    c = model.config
    if (c.image_shape, c.num_classes) != (card.sample_shape, len(card.classes)):
        raise ValueError(
            f"{folder}: its weights make samples of shape {c.image_shape} in {c.num_classes} classes, its card says "
            f"{card.sample_shape} in {len(card.classes)}; make the model again by sit_rl.pretrain base"
        )
    if (vae is None) != (card.vae is None):
        how = f"learnt latents of {card.vae}" if card.vae else "learnt pixels"
        raise ValueError(f"{folder} {how}; {'pass this autoencoder by --vae' if card.vae else 'leave --vae out'}")
    if vae is not None and content_hash(vae) != card.vae_sha256:
        raise ValueError(
            f"--vae {vae} is not the autoencoder of {folder}: its SHA-256 is another; pass the one that it was trained "
            f"with, {card.vae}"
        )


def network_name(folder: Path, card: ModelCard, role: str) -> str:
    """The name of the "reward" or "judge" network, as --reward-features takes it."""
    name = card.networks[role]
    return f"small:{folder / name}" if name.endswith(".safetensors") else name
