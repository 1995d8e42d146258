"""Every reader of files, by the ending of what it reads.  A reader takes a path; what it returns is not looked at."""

import os
from pathlib import Path

import torch
from torch import nn

from fastfid import FeatureExtractor, FeatureMoments, RealFactor, open_images
from fastfid.features.cache import FeatureCache
from fastfid.features.fashion import load_fashion_net
from fastfid.features.weight_files import read_state
from fastfid.statistics.peer_files import holds_statistics
from fastfid.statistics.statistics import read_statistics
from sit_rl.components.image_sets import LABEL_HEADER, _read_idx
from sit_rl.config_files import load_config
from sit_rl.files.prompts import read_prompts
from sit_rl.files.tensor_files import read_safetensors
from sit_rl.generation.sample_files import PngFolder
from sit_rl.learner.checkpoint import load_values
from sit_rl.models.loading import load_model
from sit_rl.runs.log import read_metrics
from sit_rl.runs.summary import load_summary

FOLDER = "input"  # that an input lies in, alone
FACTORED = FeatureMoments(9, torch.zeros(3), torch.eye(3))


def images(path):
    """Array files and archives; floats in [0, 1]."""
    for _ in open_images(path, value_range=(0.0, 1.0), workers=1).batches(2):
        pass


def image(path):
    """A folder of this one image."""
    for _ in open_images(path.parent, workers=1).batches(1):
        pass


def shard(path):
    """The file lies where the cache looks for a shard; damage is no error there."""
    extractor, cache = FeatureExtractor.from_module(nn.Flatten(), 6, name="f"), FeatureCache(path.parent)
    place = cache.path(extractor, "d")
    place.parent.mkdir(parents=True, exist_ok=True)
    os.replace(path, place)
    cache.load(extractor, "d", 4)


def factor(path):
    """Damage is no error here; the file is written again."""
    RealFactor.kept(FACTORED, path)


def as_names(read, *names, called=None):
    """A reader of a folder that looks for files of these names, all of this content; it calls them `called`."""

    def of_folder(path):
        content = path.read_bytes()
        path.unlink()
        for name in names:
            path.with_name(name).write_bytes(content)
        read(path.parent)

    of_folder.called, of_folder.__name__ = called or names[0], f"{read.__name__} of {names[0]}"
    return of_folder


def record(folder):
    PngFolder(folder, 3, (3, 8, 8)).read_record()


def idx(path):
    """Labels of Fashion-MNIST, behind a header of 8 bytes."""
    _read_idx(path, LABEL_HEADER)


def own_network(path):
    load_fashion_net("fashion-a", path)


READERS = {
    ".npz": (read_statistics, FeatureMoments.load, holds_statistics, images, shard, factor),
    ".npy": (read_statistics, holds_statistics, images),
    ".pkl": (read_statistics,),
    ".pt": (read_statistics, read_state, load_model),
    ".safetensors": (read_safetensors, read_state, load_model, own_network),
    ".zip": (images,),
    **dict.fromkeys((".png", ".jpg", ".webp", ".bmp", ".gif", ".tif", ".ppm"), (image,)),
    ".yaml": (load_config,),
    ".json": (load_summary, as_names(load_values, "state.json", called=FOLDER), as_names(record, "sampling.json")),
    ".jsonl": (as_names(read_metrics, "metrics.jsonl"), read_prompts),
    ".gz": (idx,),
}


def called_by(read, path: Path) -> str:
    """What the sentence of a reader calls the file."""
    return getattr(read, "called", path.name)
