"""Every reader of files, by the kind of what it reads.  A reader takes a path; what it returns is not looked at.

A kind is the ending of the files, or the name of a file that lies in a folder of its own, such as card.json.
"""

import os
from functools import cache
from pathlib import Path

import torch
from torch import nn

from fastfid import FeatureExtractor, FeatureMoments, RealFactor, feature_extractor, open_images
from fastfid.evaluation.class_names import names_of_classes
from fastfid.features.cache import FeatureCache
from fastfid.features.fashion import load_fashion_net
from fastfid.features.weight_files import read_state
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.safe_pickle import load_torch
from fastfid.statistics.statistics import read_statistics
from sit_rl.components.image_sets import LABEL_HEADER, _read_idx
from sit_rl.components.own_images import open_source, prepare
from sit_rl.config import Config
from sit_rl.config_files import load_config, with_file
from sit_rl.files.checksums import SUMS, check_sums, sums_of
from sit_rl.files.prompts import read_prompts
from sit_rl.files.tensor_files import read_safetensors
from sit_rl.generation.sample_files import PngFolder
from sit_rl.learner import checkpoint
from sit_rl.models import prompt_embeddings
from sit_rl.models.card import network_name, read_card
from sit_rl.models.loading import load_model
from sit_rl.models.pipeline_families import family_of
from sit_rl.runs.figure_files import saved_samples
from sit_rl.runs.log import read_metrics
from sit_rl.runs.summary import load_summary
from sit_rl.study.one_run import load_evaluation
from sit_rl.study.plan import read_study
from tests.fuzz.seeds import whole
from tests.support.small_reward import flow_grpo, fresh, trl

FOLDER = "input"  # that an input lies in, alone
FACTORED = FeatureMoments(9, torch.zeros(3), torch.eye(3))


@cache
def extractor():
    """Of six features, for the cache."""
    return FeatureExtractor.from_module(nn.Flatten(), 6, name="f")


# --- images --------------------------------------------------------------------------------------------------------


def images(path):
    """Array files and archives; floats in [0, 1]."""
    for _ in open_images(path, value_range=(0.0, 1.0), workers=1).batches(2):
        pass


def image(path):
    """A folder of this one image."""
    for _ in open_images(path.parent, workers=1).batches(1):
        pass


def own_images(path):
    """An archive of images for `sit_rl.pretrain`; every image is made square."""
    prepare(open_source("--images", path), 4, "pad")


def labels_beside(path):
    """A folder of two images and their classes; a note says where these are not read."""
    for name in ("0.png", "1.png"):
        path.with_name(name).write_bytes(_picture())
    open_images(path.parent, workers=1).labels(0, 2)


@cache
def _picture():
    place = Path(__file__).parent / "corpus" / "iccp-empty.png"
    return place.read_bytes()


# --- arrays and tensors ----------------------------------------------------------------------------------------------


def shard(path):
    """The file lies where the cache looks for a shard; damage is no error there."""
    cached = FeatureCache(path.parent)
    place = cached.path(extractor(), "d")
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, place)
    cached.load(extractor(), "d", 4)


def factor(path):
    """Damage is no error here; the file is written again."""
    RealFactor.kept(FACTORED, path)


def samples(path):
    """Damage is no error here; the report goes without the images."""
    path.parent.with_name("figures").mkdir(exist_ok=True)
    os.replace(path, path.parent.with_name("figures") / path.name)
    saved_samples(path.parents[1], path.stem)


def reward_state(path):
    _named(path, lambda content: fresh().load_state_dict(content))


def adapters(path):
    """What other trainers pass to a reward."""

    def both(content):
        given = content if isinstance(content, dict) else {"images": content}
        trl()(given.get("labels"), given.get("images"))
        flow_grpo()(given.get("images"), given.get("labels"))

    _named(path, both)


def _named(path, use):
    """Call `use` with the content of a torch file; its sentences name no file."""
    content = load_torch(path)
    try:
        use(content)
    except ValueError as error:
        raise ValueError(f"{path.name}: {error}") from None


def own_network(path):
    load_fashion_net("fashion-a", path)


def small_network(path):
    feature_extractor(f"small:{path}")


def embeddings(path):
    """Damage is no error here; the prompts are encoded again."""
    prompt_embeddings._read(path)


def shard_of_checkpoint(path):
    """A checkpoint whose hashes are right, so that the tensors themselves are read."""
    folder = path.parent / "step-000001"
    folder.mkdir()
    os.replace(path, folder / "shard-00001-model-00001-of-00001.safetensors")
    (folder / checkpoint.VALUES).write_text("{}")
    (folder / SUMS).write_text(sums_of(folder))
    for part in sorted({name.partition(".")[0] for name in checkpoint.names(folder)}):
        checkpoint.load_part(folder, part)


shard_of_checkpoint.called = "step-000001"


def parts(path):
    """An index whose part lies beside it."""
    path.with_name("part.safetensors").write_bytes(_part())
    load_model(path)


@cache
def _part():
    return whole(".safetensors")[0]


# --- records and settings --------------------------------------------------------------------------------------------


def in_folder(read, called=None):
    """A reader of a folder, in which it looks for the file; it calls the folder or the file `called`."""

    def of_folder(path):
        read(path.parent)

    if called is not None:
        of_folder.called = called
    of_folder.__name__ = read.__name__
    return of_folder


def record(folder):
    PngFolder(folder, 3, (3, 8, 8)).read_record()


def card(folder):
    found = read_card(folder)
    for role in found.networks:
        network_name(folder, found, role)


def sums(path):
    """A folder with a file to compare."""
    folder = path.parent
    os.replace(path, folder / SUMS)
    (folder / checkpoint.VALUES).write_text("{}")
    try:
        check_sums(folder, checkpoint.CHECKED)
    except ValueError as error:  # the checkpoint's sentence names the folder
        raise ValueError(f"{path.name}: {error}") from None


def pipeline(path):
    """The index of a pipeline, or the config.json of its transformer, autoencoder and scheduler."""
    folder, content = path.parent, {kind: whole(kind)[0] for kind in ("model_index.json", "config.json")}
    content[path.name] = path.read_bytes()
    for name in ("transformer", "vae", "scheduler"):
        (folder / name).mkdir()
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (folder / name / file).write_bytes(content["config.json"])
    (folder / "model_index.json").write_bytes(content["model_index.json"])
    family_of(folder)


pipeline.called = FOLDER


def config_flag(path):
    with_file(Config(), path)


def idx(path):
    """Labels of Fashion-MNIST, behind a header of 8 bytes."""
    _read_idx(path, LABEL_HEADER)


READERS = {
    ".npz": (read_statistics, FeatureMoments.load, holds_statistics, images, shard, factor),
    ".npy": (read_statistics, holds_statistics, images),
    "labels.npy": (labels_beside,),
    "before_ode.npy": (samples,),
    ".pkl": (read_statistics,),
    ".pt": (read_statistics, read_state, load_model, reward_state, adapters),
    ".safetensors": (
        read_safetensors, read_state, load_model, own_network, small_network, embeddings, shard_of_checkpoint
    ),
    "model.index.json": (parts,),
    ".zip": (images, own_images),
    ".tar": (images, own_images),
    **dict.fromkeys((".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".ppm"), (image,)),
    "config.yaml": (load_config, config_flag),
    "study.yaml": (read_study,),
    "summary.json": (load_summary,),
    "card.json": (in_folder(card),),
    "state.json": (in_folder(checkpoint.load_values, FOLDER),),
    "sums.txt": (sums,),
    "sampling.json": (in_folder(record),),
    "evaluation.json": (in_folder(load_evaluation),),
    "classes.json": (names_of_classes,),
    "classes.txt": (names_of_classes,),
    "model_index.json": (pipeline,),
    "config.json": (pipeline,),
    "metrics.jsonl": (in_folder(read_metrics),),
    "prompts.jsonl": (read_prompts,),
    ".gz": (idx,),
}  # fmt: skip


# What an input of a kind takes, where it is not about 1: on one slow core, by `python -m tests.fuzz`.
MILLISECONDS = {
    "config.yaml": 9,
    ".pt": 5,
    ".safetensors": 5,
    ".zip": 2,
    ".png": 2,
    ".jpg": 2,
    ".gif": 2,
    ".tif": 2,
    ".gz": 2,
}
THREADED = (images, image, own_images)  # which decode in threads


def called_by(read, path: Path) -> str:
    """What the sentence of a reader calls the file."""
    return getattr(read, "called", path.name)


def file_name(kind: str) -> str:
    """The name of an input of a kind."""
    return f"x{kind}" if kind.startswith(".") else kind
