"""The runs of a study: what is left to do, and doing it on the cores or GPUs that there are.

Each run is a process with its own share of the machine. A finished run is not repeated, and one that was broken off
resumes. A run that fails does not stop the others.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from sit_rl.config import Config, differences, resolve
from sit_rl.config_files import load_config
from sit_rl.options.option import dashed
from sit_rl.runs.summary import SAMPLERS, SUMMARY, load_summary
from sit_rl.study.one_run import RESULT, load_evaluation
from sit_rl.study.plan import Row, Study, with_seed

CONFIG = "wanted.yaml"  # in a run's folder: what the study wants of it; a run writes its own config.yaml
OUTPUT = "output.txt"  # what the run's process printed
PROCESS = (sys.executable, "-m", "sit_rl.study.one_run")  # that does one run, given its file
LAST_WORDS = 300  # characters of a failed run's last line that are repeated
STOPPING = 30.0  # seconds that runs get to save and end; their own --grace is 20


@dataclass(frozen=True)
class Job:
    """One run of a study: a row with a seed, in a folder."""

    row: Row
    seed: int
    folder: Path
    config: Config

    @property
    def name(self) -> str:
        """For messages: the row and the seed."""
        return (
            f"{self.row.name}, {self.row.config.steps} steps, seed {self.seed}"
            if self.row.trained
            else (f"{self.row.name}, seed {self.seed}")
        )

    @property
    def result_file(self) -> Path:
        """Where the finished run leaves what it found."""
        return self.folder / (SUMMARY if self.row.trained else RESULT)

    def result(self) -> dict[str, Any] | None:
        """What the finished run found: its summary, or its evaluation; None if it is not finished."""
        if self.row.trained:
            return load_summary(self.folder) if self.result_file.is_file() else None
        found = load_evaluation(self.folder)
        return found if all(found[sampler] is not None for sampler in SAMPLERS) else None


def jobs_of(study: Study, out: Path, threads: int) -> list[Job]:
    """Every run of a study; those that evaluate another one's weights come after it."""
    jobs = []
    for row in sorted(study.rows, key=lambda row: row.of is not None):
        for seed in study.seeds:
            folder = out / f"{row.slug}-seed-{seed}"
            config = with_seed(row, seed, folder).changed(threads=threads)
            if row.of is not None:
                source = next(each for each in study.rows_of(trained=True) if each.name == row.of)
                weights = out / f"{source.slug}-seed-{seed}" / "ema.safetensors"
                config = config.changed(checkpoint=weights, architecture="auto")
            jobs.append(Job(row, seed, folder, resolve(config)))
    return jobs


def unfinished(jobs: Sequence[Job]) -> list[Job]:
    """The jobs without a result; ValueError, before any work, for a folder of another run."""
    left = []
    for job in jobs:
        saved = job.folder / CONFIG
        if saved.is_file():
            changed = differences(load_config(saved), job.config)
            if changed:
                raise ValueError(
                    f"{job.folder} holds a run with another {dashed(changed[0])}; choose another --out, or delete it"
                )
        elif job.folder.exists() and any(job.folder.iterdir()):
            raise ValueError(f"{job.folder} is in the way and not of a study; choose another --out")
        if job.result() is None:
            left.append(job)
    return left


def devices(jobs_at_once: int) -> tuple[list[dict[str, str]], int]:
    """The environment of each place where a run can work, and the CPU threads of a run.

    One place a GPU, else one a core; `jobs_at_once` gives another number of places, 0 this one.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count()
    count = jobs_at_once or gpus or cores
    threads = max(1, cores // count)
    places = [{"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)} for _ in range(count)]
    if gpus:
        seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
        names = seen.split(",") if seen else [str(i) for i in range(gpus)]
        for i, place in enumerate(places):
            place["CUDA_VISIBLE_DEVICES"] = names[i % gpus]
    return places, threads


@dataclass
class Pool:
    """Runs processes at a number of places.

    places  the environment of each
    tell    called with a line for each run that ends
    """

    places: list[dict[str, str]]
    tell: Callable[[str], None]
    running: dict[int, subprocess.Popen[bytes]] = field(default_factory=dict)
    stopped: bool = False

    def run(self, jobs: Sequence[Job]) -> dict[str, str]:
        """Run the jobs, those that need another one's weights last; returns why each failed one did, by name."""
        failed: dict[str, str] = {}
        done = 0
        for of_others in (False, True):
            some = [job for job in jobs if (job.row.of is not None) is of_others]
            free: SimpleQueue[dict[str, str]] = SimpleQueue()
            for place in self.places:
                free.put(place)
            with ThreadPoolExecutor(len(self.places)) as threads, self._ended_on_interrupt():
                waiting = {threads.submit(self._one, job, free): job for job in some}
                for finished in as_completed(waiting):
                    job, (why, seconds) = waiting[finished], finished.result()
                    done += 1
                    self.tell(f"{done:3}/{len(jobs)}  {job.name}: {why or f'done in {seconds:.0f} s'}")
                    if why:
                        failed[job.name] = why
        return failed

    def _one(self, job: Job, free: SimpleQueue[dict[str, str]]) -> tuple[str, float]:
        """Run one job at a free place; returns why it failed, '' if it did not, and its seconds."""
        if self.stopped:
            return "not begun", 0.0
        place, started = free.get(), time.perf_counter()
        try:
            weights = job.config.files.checkpoint if job.row.of is not None else None
            if weights is not None and not weights.is_file():
                return f"failed: row {job.row.of} has not made {weights}", 0.0
            job.folder.mkdir(parents=True, exist_ok=True)
            job.config.save(job.folder / CONFIG)
            words = [*PROCESS, str(job.folder / CONFIG)]
            words += [] if job.row.trained else ["--evaluate-only"]
            with open(job.folder / OUTPUT, "ab") as output:  # a killed study's run may still be writing its end
                begin = output.tell()
                process = subprocess.Popen(words, stdout=output, stderr=output, env=os.environ | place)
                self.running[process.pid] = process
                code = process.wait()
                del self.running[process.pid]
            if code == 0 and job.result() is None:
                return "stopped before its end; the same command goes on", time.perf_counter() - started
            return ("" if code == 0 else failure(code, job.folder / OUTPUT, begin)), time.perf_counter() - started
        finally:
            free.put(place)

    @contextmanager
    def _ended_on_interrupt(self) -> Iterator[None]:
        """Where this process is told to stop, its runs are told too, and save."""

        def stop(*_: object) -> None:
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, stop)
        try:
            yield
        except BaseException:
            self.stopped = True
            for process in list(self.running.values()):
                process.terminate()
            deadline = time.monotonic() + STOPPING
            while self.running and time.monotonic() < deadline:
                time.sleep(0.1)
            for process in list(self.running.values()):
                process.kill()
            raise
        finally:
            signal.signal(signal.SIGTERM, before)


def failure(code: int, output: Path, begin: int = 0) -> str:
    """Why a process ended with another status than 0, with the last line that it printed behind byte `begin`."""
    lines = output.read_bytes()[begin:].decode(errors="replace").splitlines()
    told = [line for line in lines if line.startswith("error: ")] or [line for line in lines if line.strip()] or [""]
    how = f"killed by signal {-code}" if code < 0 else f"failed with status {code}"
    return f"{how}: {told[-1].strip()[:LAST_WORDS]} (see {output})"
