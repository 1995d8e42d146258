"""The process group of a run: how ranks join, how they notice a dead rank, and how they leave."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist

if TYPE_CHECKING:
    from torch.distributed.distributed_c10d import Store

# Longest wait in a collective while all ranks are alive: one rank may compute for the others (KID of 50,000 images).
TIMEOUT = timedelta(minutes=30)
# Seconds without a heartbeat after which a rank counts as dead; a rank sends ten heartbeats in this time.
DEAD_AFTER = 45.0
# Exit status of a rank that stops because another one is dead.
LOST_RANK = 3

# Words in the errors of gloo and NCCL when a rank that a collective waits for is gone.
LOST_CONTACT = re.compile(r"[Cc]onnection (closed|reset|refused)|[Tt]imed? ?out|peer|NCCL|gloo", re.ASCII)
# Seconds between two checks for ranks that have not joined yet.
GREETING_INTERVAL = 0.05

# A group of its own for checkpoints, which are written while training uses the default group.
_checkpoint_group: dist.ProcessGroup | None = None
# Prefix of this start's keys in the store that the ranks share.
_start = ""


def initialise(threads: int = 0) -> torch.device:
    """Join the process group that torchrun describes, if any. Sets the CPU threads and returns this rank's device."""
    global _checkpoint_group, _start
    if threads < 0:
        raise ValueError(f"--threads is {threads}; it must not be negative, 0 divides the cores among the ranks")
    world = int(os.environ.get("WORLD_SIZE", 1))
    local, local_world = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", world))
    cuda = torch.cuda.is_available()
    if cuda:
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"rank {local} of this machine has no GPU, {torch.cuda.device_count()} are visible; start one process "
                "for each GPU (torchrun --nproc-per-node), or hide them all (CUDA_VISIBLE_DEVICES=) to use the CPU"
            )
        torch.cuda.set_device(local)
    torch.set_num_threads(threads or max(1, (os.cpu_count() or 1) // local_world))
    torch.set_flush_denormal(True)  # gradients far below float32's range would otherwise slow a CPU ten times
    if world > 1 and not dist.is_initialized():
        store, number, _ = next(dist.rendezvous("env://", timeout=TIMEOUT))  # type: ignore[attr-defined]  # not marked as exported
        _start = agree_on_start(store, number, world)
        own_store = dist.PrefixStore(_start, store)  # type: ignore[attr-defined]  # as above
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            store=own_store, rank=number, world_size=world, timeout=TIMEOUT,
        )  # fmt: skip
        _checkpoint_group = cast(dist.ProcessGroup, dist.new_group(backend="gloo", timeout=TIMEOUT))
    return torch.device("cuda", local) if cuda else torch.device("cpu")


def agree_on_start(store: Store, number: int, world: int) -> str:
    """A word shared by the ranks of this start and used by no earlier start. Rank `number` of `world` ranks calls it.

    torchrun keeps its store over `--max-restarts`, with the addresses of dead processes, which cannot be reached.
    Its restart count distinguishes starts only within one machine. So each rank writes a random word of its own, and
    takes the main rank's word after that rank has answered.
    """
    word = f"sit_rl/{uuid.uuid4().hex}"
    if number:
        store.set(f"sit_rl/greeting/{number}", word)
        start: str = store.get(f"{word}/answer").decode()  # waits
        store.add(f"{start}/met", 1)
        return start
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while store.add(f"{word}/met", 0) < world - 1:
        if time.monotonic() > deadline:
            raise dist.DistStoreError(f"timed out: not all of {world} ranks have come within {TIMEOUT}")
        for r in range(1, world):
            if store.check([f"sit_rl/greeting/{r}"]):  # may be of an earlier start; then the answer is not read
                store.set(f"{store.get(f'sit_rl/greeting/{r}').decode()}/answer", word)
        time.sleep(GREETING_INTERVAL)
    return word


@contextmanager
def process_group(threads: int = 0, dead_after: float = DEAD_AFTER) -> Iterator[torch.device]:
    """Yield this rank's device. At the end leave the process group and restore the settings that `initialise` changed.

    dead_after  seconds without a heartbeat of a rank after which all others end with an error
    """
    global _checkpoint_group
    threads_before, heartbeat = torch.get_num_threads(), None
    try:
        device = initialise(threads)
        heartbeat = Heartbeat(dead_after) if world_size() > 1 else None
        yield device
        if heartbeat is not None:
            heartbeat.stop("gone")
            barrier()  # the rank that holds the store leaves last
    except BaseException:
        if heartbeat is not None:
            heartbeat.stop("failed")
        raise
    finally:
        torch.set_num_threads(threads_before)
        torch.set_flush_denormal(False)
        if dist.is_initialized():
            dist.destroy_process_group()
            _checkpoint_group = None


class Heartbeat:
    """Each rank increments a counter in torchrun's store. A rank whose counter stands still counts as dead.

    torch's own timeout cannot replace it. It must be longer than the longest regular wait in a collective, and it
    detects a dead rank only in the next collective. docs/performance.md has the measurement.
    """

    def __init__(self, dead_after: float):
        self.dead_after, self._ended = dead_after, threading.Event()
        store = dist.TCPStore(  # type: ignore[attr-defined]  # torch does not mark its stores as exported
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=dead_after),
        )
        self._store = dist.PrefixStore(_start, store)  # type: ignore[attr-defined]  # as above
        self._store.set(self._key(rank()), "0")
        dist.barrier()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self, last_word: str) -> None:
        """Stop with the last word "gone", so that no rank misses this one, or "failed", so that none waits for it."""
        self._ended.set()
        self._thread.join()
        try:
            self._store.set(self._key(rank()), last_word)
        except dist.DistError:
            pass  # the store ended with the rank that held it

    @staticmethod
    def _key(of_rank: int) -> str:
        return f"heartbeat/{of_rank}"

    def _beat(self) -> None:
        others = {r: ("", time.monotonic()) for r in range(world_size()) if r != rank()}
        count = 0
        while not self._ended.wait(self.dead_after / 10):
            count += 1
            try:
                self._store.set(self._key(rank()), str(count))
                for r, (last, since) in others.items():
                    now = self._store.get(self._key(r)).decode()
                    if now == "failed":
                        self._give_up(f"rank {r} has failed, its own message says why")
                    if now != last or now == "gone":
                        others[r] = now, time.monotonic()
                    elif time.monotonic() - since > self.dead_after:
                        self._give_up(
                            f"rank {r} has shown no sign of life for {self.dead_after:g} s: it has died or hangs"
                        )
            except dist.DistError as error:
                if not self._ended.is_set():
                    self._give_up(f"the ranks' store does not answer ({' '.join(str(error).split())[:120]})")

    @staticmethod
    def _give_up(what: str) -> None:
        """End this process from the heartbeat thread: the main thread may wait for the dead rank forever."""
        print(f"error: {what}; run the same command again, it resumes", file=sys.stderr, flush=True)
        os._exit(LOST_RANK)


def checkpoint_group() -> dist.ProcessGroup | None:
    """The process group of checkpoints, None on a single rank."""
    return _checkpoint_group


def rank() -> int:
    """Number of this process, 0 … world − 1."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main() -> bool:
    """Whether this process prints and writes."""
    return rank() == 0


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        dist.barrier()
