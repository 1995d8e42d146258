"""Pretraining on a user's own images: images → networks → generator → a model's folder. It can be resumed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fastfid import FeatureExtractor, feature_extractor
from fastfid.images.source import counted
from fastfid.runtime.atomic_files import write_atomically
from fastfid.runtime.distributed import from_main
from fastfid.runtime.hashes import sha256
from fastfid.statistics.statistics import Statistics
from sit_rl.components.image_sets import tile
from sit_rl.components.own_images import OwnImages
from sit_rl.files.atomic import write_json, write_text, writing
from sit_rl.learner import checkpoint
from sit_rl.models.autoencoder import load_decoder, load_encoder
from sit_rl.models.averages import EMA
from sit_rl.models.card import CARD, WEIGHTS, ModelCard, SetRecord, network_name
from sit_rl.models.loading import save_model
from sit_rl.models.pixels import to_uint8
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.pretraining.flow import (
    Decode,
    FlowData,
    FlowSettings,
    Judge,
    features_of,
    fit,
    heldout_judge,
    optimizer_of,
)
from sit_rl.pretraining.networks import ROLES, train_network
from sit_rl.pretraining.plan import curve_seconds, duration, peak_megabytes, samples_path, seconds_per_iteration
from sit_rl.ranks.messages import say
from sit_rl.ranks.preemption import Preempted, told_to_stop, watch
from sit_rl.ranks.process_group import barrier, is_main, world_size
from sit_rl.runs.log import GRID_COLUMNS
from sit_rl.sampling.random_streams import Stream, generator

CURVE, CURVE_HEADER = "curve.csv", "iteration,loss,heldout_fd,seconds\n"
CHECKPOINTS, KEPT = "checkpoints", 1
GRACE = 20.0  # seconds, as --grace of sit_rl/train.py
ASK_EVERY = 10  # iterations after which the ranks ask each other whether one was told to stop


@dataclass(frozen=True)
class OwnPlan:
    """Everything that a pretraining depends on, with nothing left to choose.

    shape         of the generator
    networks      by role: the name in the card
    train, heldout  records of the images
    vae           folder of the autoencoder and its SHA-256, or None
    curve_every   iterations between points of the curve
    curve_images  images behind each point
    save_every    iterations between checkpoints
    """

    out: Path
    source: str
    crop: str
    shape: SiTConfig
    settings: FlowSettings
    networks: dict[str, str]
    train: SetRecord
    heldout: SetRecord
    vae: tuple[Path, str] | None
    mirror: bool
    curve_every: int
    curve_images: int
    save_every: int


def pretrain(plan: OwnPlan, images: OwnImages, device: torch.device, saved: Path | None) -> ModelCard:
    """Train networks and generator and write the model's folder; Preempted, after a save, where told to stop.

    saved  the checkpoint to go on from
    """
    with writing("--out", plan.out):
        plan.out.mkdir(parents=True, exist_ok=True)
        networks = trained_networks(plan, images, device)
    card = card_of(plan, images)
    data, decode = flow_data(plan, images, device)
    judge = heldout_judge(
        networks["reward"], images.heldout.images, plan.shape.image_shape, plan.shape.num_classes, decode,
        plan.curve_images, plan.settings.seed, grid=GRID_COLUMNS**2,
    )  # fmt: skip
    state = State(plan, device)
    if saved is not None:
        state.load(saved)
        card.training.update(state.facts)
    tell_time(plan, state, data)
    run = Run(plan, card, state, judge)
    with watch(GRACE):  # before it, nothing is lost but the training of a network
        run.train(data)
    if is_main():
        write_statistics(plan, networks, images)
    barrier()
    return run.card


def trained_networks(plan: OwnPlan, images: OwnImages, device: torch.device) -> dict[str, FeatureExtractor]:
    """The networks of both roles; those that are the model's own are trained by the main rank if they are missing."""
    for role in ROLES:
        if plan.networks[role].endswith(".safetensors"):
            path = plan.out / plan.networks[role]
            say(from_main(partial(train_network, role, images.train, images.heldout, plan.settings.seed, path)))
    card = card_of(plan, images)
    return {role: feature_extractor(network_name(plan.out, card, role), device=device) for role in ROLES}


def card_of(plan: OwnPlan, images: OwnImages) -> ModelCard:
    """The card of the model that a plan makes."""
    _, channels, height, width = images.train.images.shape
    settings = plan.settings
    return ModelCard(
        image_shape=(channels, height, width),
        sample_shape=plan.shape.image_shape,
        classes=images.classes,
        labelled=images.labelled,
        crop=plan.crop,
        vae=None if plan.vae is None else str(plan.vae[0].resolve()),
        vae_sha256=None if plan.vae is None else plan.vae[1],
        networks=plan.networks,
        images=plan.source,
        train=plan.train,
        heldout=plan.heldout,
        split=images.split,
        training={
            "iterations": settings.iterations, "batch": settings.batch, "lr": settings.lr, "ema": settings.ema,
            "seed": settings.seed, "mirror": plan.mirror,
        },
    )  # fmt: skip


def flow_data(plan: OwnPlan, images: OwnImages, device: torch.device) -> tuple[FlowData, Decode]:
    """What the generator learns, pixels or latents, and what turns its samples into images.

    Each image is encoded once, with the noise of its own number.
    """
    if plan.vae is None:
        return FlowData(images.train.images, images.train.labels, plan.mirror), to_uint8
    encode, decode = load_encoder(plan.vae[0], device), load_decoder(plan.vae[0], device)
    rng, shape = generator(plan.settings.seed, Stream.PRETRAIN, 4), plan.shape.image_shape
    parts = []
    for part in images.train.images.split(64):
        noise = torch.from_numpy(rng.standard_normal((len(part), *shape), dtype=np.float32))
        parts.append(encode(part, noise.to(device)).cpu())
    return FlowData(torch.cat(parts), images.train.labels, plan.mirror), decode


def _identity(plan: OwnPlan) -> str:
    """SHA-256 of what decides the weights of a pretraining; a checkpoint of another one must not be continued."""
    of_vae = plan.vae and plan.vae[1]
    return sha256([repr((plan.shape, plan.settings, of_vae, plan.mirror, plan.crop, plan.train, plan.heldout))])


class State:
    """What changes during a pretraining, and is saved: weights, their average, the optimiser."""

    def __init__(self, plan: OwnPlan, device: torch.device):
        torch.manual_seed(plan.settings.seed)
        self.model = SiT(plan.shape).to(device)
        self.average = EMA(self.model, plan.settings.ema)
        self.optimizer = optimizer_of(self.model, plan.settings)
        self.plan = _identity(plan)
        self.done, self.seconds = 0, 0.0
        self.curve: list[str] = []
        self.losses: list[float] = []  # since the last point of the curve
        self.facts: dict[str, Any] = {}  # of the last point of the curve, for the card

    def tensors(self) -> dict[str, torch.Tensor]:
        """All tensors by name; loading fills them in place."""
        out = {f"model.{name}": p.detach() for name, p in self.model.named_parameters()}
        out |= {f"ema.{name}": p.detach() for name, p in self.average.module.named_parameters()}
        for name, p in self.model.named_parameters():
            for key, value in self.optimizer.state.get(p, {}).items():
                out[f"optimizer.{name}.{key}"] = value
        return out

    def values(self) -> dict[str, Any]:
        """The plain values of a checkpoint."""
        return {"iteration": self.done, "seconds": self.seconds, "curve": self.curve, "facts": self.facts,
                "losses": self.losses, "plan": self.plan}  # fmt: skip

    def load(self, path: Path) -> None:
        """Continue from a checkpoint; ValueError if it is damaged, of another version or of another pretraining."""
        values = checkpoint.load_values(path)
        try:
            self.done, self.seconds = int(values["iteration"]), float(values["seconds"])
            self.curve, self.facts = [str(line) for line in values["curve"]], dict(values["facts"])
            self.losses = [float(loss) for loss in values["losses"]]
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"checkpoint {path} was not written by this version; {checkpoint.remedy(path)}") from None
        if values.get("plan", self.plan) != self.plan or self.done != checkpoint.step_of(path):
            raise ValueError(f"checkpoint {path} is of another pretraining or step; {checkpoint.remedy(path)}")
        for p in (p for p in self.model.parameters() if p.requires_grad):
            zeros = {key: torch.zeros_like(p, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")}
            self.optimizer.state[p] = {"step": torch.zeros((), dtype=torch.float32, device=p.device), **zeros}
        checkpoint.load_tensors(path, self.tensors())
        say(f"resuming {path.parent.parent} at iteration {self.done}")


class Run:
    """The loop: train, save, judge."""

    def __init__(self, plan: OwnPlan, card: ModelCard, state: State, judge: Judge):
        self.plan, self.card, self.state, self.judge = plan, card, state, judge
        self.writer = checkpoint.Writer(plan.out / CHECKPOINTS, KEPT)

    def train(self, data: FlowData) -> None:
        """All remaining iterations."""
        state, settings = self.state, self.plan.settings
        started, before = time.perf_counter(), state.seconds
        try:
            steps = fit(state.model, state.average, state.optimizer, data, settings, state.done)
            for i, loss in steps:
                state.losses.append(loss)
                state.done, state.seconds = i, before + time.perf_counter() - started
                last = i == settings.iterations
                if i % self.plan.curve_every == 0 or last:
                    self.point(float(np.mean(state.losses)))
                    state.losses.clear()
                stop = (i % ASK_EVERY == 0 or last) and told_to_stop()
                if i % self.plan.save_every == 0 or stop or last:
                    self.writer.save(i, state.tensors(), state.values())
                if stop:
                    raise Preempted
        finally:
            self.writer.wait()

    def point(self, loss: float) -> None:
        """A point of the curve: held-out FD, a grid of samples, and the model as it is now."""
        state, out = self.state, self.plan.out
        if not np.isfinite(loss):
            raise FloatingPointError(
                f"the loss is {loss} at iteration {state.done}; choose another --out and a lower --lr"
            )
        distance, images = self.judge(state.average.module)
        state.curve.append(f"{state.done},{loss:.5f},{distance:.4f},{state.seconds:.0f}")
        say(f"iteration {state.done}: loss {loss:.4f}, held-out FD {distance:.3f}")
        state.facts = {
            "done": state.done, "seconds": round(state.seconds), "heldout_fd": distance, "ranks": world_size(),
            "peak_megabytes": round(peak_megabytes()),
        }  # fmt: skip
        self.card.training.update(state.facts)
        if not is_main():
            return
        write_text(out / CURVE, CURVE_HEADER + "\n".join(state.curve) + "\n")
        picture = tile(images.cpu().numpy(), GRID_COLUMNS)
        path = samples_path(out, state.done)
        path.parent.mkdir(exist_ok=True)
        write_atomically(path, lambda file: Image.fromarray(picture).save(file, "PNG"))
        save_model(state.average.module, out / WEIGHTS, iteration=str(state.done), seed=str(self.plan.settings.seed))
        write_json(out / CARD, self.card.to_json())


def tell_time(plan: OwnPlan, state: State, data: FlowData) -> None:
    """Print how long the remaining iterations will take, as measured on this machine."""
    each = seconds_per_iteration(state.model, data, plan.settings)
    left = plan.settings.iterations - state.done
    points = -(-left // plan.curve_every)
    total = left * each + points * curve_seconds(each, plan.settings, plan.curve_images)
    say(f"predicted   {duration(total)} for {left} iterations at {each:.3f} s, with {counted(points, 'evaluation')}")


def write_statistics(plan: OwnPlan, networks: dict[str, FeatureExtractor], images: OwnImages) -> None:
    """Moments of the training images through both networks, as `fastfid` reads them."""
    for role, network in networks.items():
        provenance = {
            "extractor": network.name, "weights_sha256": network.weights_sha256,
            "preprocessing": network.preprocessing, "source": plan.source,
        }  # fmt: skip
        features = features_of(network, images.train.images).cpu()
        Statistics.from_features(features, dict(provenance)).save(plan.out / statistics_file(role), False)


def statistics_file(role: str) -> str:
    """Name of the file with the moments of the training images through a role's network."""
    return f"statistics-{role}.npz"
