"""The committed hostile files and some hundred mutations; the runner notices every kind of fault."""

import json
import os
import random
import signal
import sys
import time
from functools import partial

import numpy as np
import pytest
import torch

from tests.fuzz import runner
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import READERS
from tests.fuzz.runner import corpus, input_of, put, run, told_by, warm
from tests.fuzz.seeds import CORPUS, ending_of, objects, seeds, whole

INPUTS = 100  # some seconds; `python -m tests.fuzz` tries more

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and reads /proc")


@pytest.fixture(scope="module", autouse=True)
def before_forking():
    """Children are forked, which threads of torch would not survive."""
    torch.set_num_threads(1)
    warm()


def test_every_hostile_file_is_one_sentence():
    committed = corpus()
    report = run(committed.__getitem__, 0, len(committed), workers=2)
    assert report.inputs == len(committed) > 100
    assert report.faults == [], report.faults[0].told
    assert report.refused > len(committed) / 2


def test_mutations_are_one_sentence():
    report = run(partial(input_of, 0, kinds=list(READERS)), 0, INPUTS, workers=2)
    assert report.inputs == INPUTS and report.faults == [], report.faults[0].told
    assert report.refused and report.read


@pytest.mark.parametrize("kind", READERS)
def test_whole_files_are_read(tmp_path, kind):
    """A seed that no reader takes would test nothing but the first check."""
    taken = 0
    for read in READERS[kind]:
        for content in whole(kind):
            told = told_by(read, put(tmp_path / "tried", kind, content))
            assert told in ("read", "refused"), told
            taken += told == "read"
    assert taken


def test_an_input_is_the_same_in_every_run():
    kinds = list(READERS)
    assert [input_of(3, n, kinds) for n in (0, 7)] == [input_of(3, n, kinds) for n in (0, 7)]
    assert len({input_of(3, n, [".npz"])[1] for n in range(50)}) > 40
    endings = {ending_of(kind) for kind in READERS}
    assert all(path.suffix in endings and path.stat().st_size < 20_000 for path in CORPUS.iterdir())
    assert all(kind in READERS for kind, _ in corpus())
    assert all(seeds(kind) for kind in READERS) and mutated(".npy", random.Random(0))


def test_changed_values_make_whole_files():
    """Half of the inputs of a kind made of values hold other values in a sound form."""
    kinds = [kind for kind in READERS if objects(kind)]
    assert {".npz", ".pt", "card.json", "study.yaml", "prompts.jsonl"} <= set(kinds)
    read = [json.loads(mutated("card.json", random.Random(n))) for n in range(40) if _is_json(n)]
    assert len(read) > 10 and len({json.dumps(value, sort_keys=True) for value in read}) > 10


def _is_json(number):
    try:
        return bool(json.loads(mutated("card.json", random.Random(number))))
    except ValueError:
        return False


# --- faults that the runner must notice --------------------------------------------------------------------------


def crash(path):
    os.kill(os.getpid(), signal.SIGKILL)


def hang(path):
    while True:
        pass


def wait(path):
    time.sleep(1000)


def memory(path):
    np.ones(10**8)[0] = 2  # 800 MB beside those of torch; kept by nobody


def another_exception(path):
    raise KeyError(path.name)


def no_name(path):
    raise ValueError("the file is damaged")


def two_lines(path):
    raise ValueError(f"{path} is\ndamaged")


def of_the_system(path):
    open(path / "x")


FAULTS = {
    crash: "crash", hang: "hang", wait: "hang", memory: "memory",
    another_exception: "exception", no_name: "exception", two_lines: "exception", of_the_system: "exception",
}  # fmt: skip


@pytest.mark.parametrize("read", FAULTS)
def test_the_runner_notices(monkeypatch, read):
    """The second of three inputs is a fault; the others are tried all the same."""
    monkeypatch.setattr(runner, "HANG_SECONDS", 0.5 if read is hang else 60.0)
    monkeypatch.setattr(runner, "WAIT_SECONDS", 1.0 if read is wait else 60.0)
    if read is memory:
        with open("/proc/self/status") as status:
            held = next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))
        monkeypatch.setattr(runner, "MOST_BYTES", min(held, runner.WARM_BYTES) + 10**8)

    def reader(path):
        if path.read_bytes() == b"1":
            read(path)
        raise ValueError(f"{path} is damaged")

    report = run(lambda number: (".x", b"%d" % number), 0, 3, readers={".x": (reader,)})
    assert [(fault.kind, fault.content) for fault in report.faults] == [(FAULTS[read], b"1")]
    assert report.inputs == 3 and report.refused == (3 if read is memory else 2)
