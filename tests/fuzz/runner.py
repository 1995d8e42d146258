"""Inputs tried in children of one warm process, which notices what a reader must not do.

A reader must end within HANG_SECONDS, leave the process below MOST_BYTES, and return or raise a ValueError or an
OSError of one line that names the file.  Everything else is a fault.  Input number i of a seed is the same in every
run, whatever else was tried before it.
"""

import contextlib
import io
import json
import mmap
import os
import random
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fastfid.images.formats import image_endings
from tests.fuzz.mutations import mutated
from tests.fuzz.readers import FOLDER, MILLISECONDS, READERS, THREADED, called_by, file_name
from tests.fuzz.seeds import CORPUS, kind_of, whole

HANG_SECONDS = 8.0  # of the processor, so that other programs on the machine make no hang
WAIT_SECONDS = 60.0  # of the clock: a reader that waits takes none of the processor
MOST_BYTES = 10**9
# Of a process that has imported torch and read whole files.  What a parent holds beyond it is not counted.
WARM_BYTES = 7 * 10**8
POLL_SECONDS = 0.02
LONGEST_SENTENCE = 2000  # characters
IN_MEMORY = "/dev/shm"  # where a folder is made and removed ten times as fast as on a disk
WARMED = 3  # whole files of each kind
INPUTS_A_CHILD = 2000  # then a fresh one, so that memory that a library keeps is no fault of an input
# The input that a child works on, since when by the clock, and the seconds of its processor by then.
STATE = struct.Struct("<qdd")


@dataclass
class Fault:
    """What a reader did to an input, which `content` is."""

    kind: str  # crash, hang, memory, exception
    reader: str
    of: str  # the kind of the file
    told: str
    content: bytes


@dataclass
class Report:
    """What was tried: inputs, files read without an error, refusals in one sentence, faults."""

    inputs: int = 0
    read: int = 0
    refused: int = 0
    slowest: float = 0.0
    most_bytes: int = 0
    faults: list[Fault] = field(default_factory=list)
    of_kind: Counter = field(default_factory=Counter)  # inputs
    seconds: Counter = field(default_factory=Counter)  # of the processor by kind, with the making of the inputs

    def add(self, other):
        for name in ("inputs", "read", "refused", "of_kind", "seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest, self.most_bytes = max(self.slowest, other.slowest), max(self.most_bytes, other.most_bytes)
        self.faults += other.faults

    def text(self):
        kinds = Counter(fault.kind for fault in self.faults)
        return (
            f"{self.inputs:,} inputs: {self.refused:,} readings refused in one sentence, {self.read:,} read; "
            f"{kinds['crash']} crashes, {kinds['hang']} hangs over {HANG_SECONDS:.0f} s, {kinds['memory']} over 1 GB, "
            f"{kinds['exception']} other exceptions; slowest {self.slowest:.1f} s, at most "
            f"{self.most_bytes / 1e6:.0f} MB"
        )

    def table(self):
        """Inputs a second of one core, by kind, the slowest first."""
        rates = sorted((count / max(self.seconds[kind], 1e-9), kind) for kind, count in self.of_kind.items())
        lines = [f"{kind:30} {self.of_kind[kind]:9,} {rate:9,.0f}" for rate, kind in rates]
        total = self.of_kind.total() / max(self.seconds.total(), 1e-9)
        return "\n".join(
            [f"{'kind':30} {'inputs':>9} {'a second':>9}", *lines, f"{'all':30} {self.inputs:9,} {total:9,.0f}"]
        )


def input_of(seed, number, kinds):
    """Kind and content of input `number`; all kinds take about the same time, so that slow ones are rarer."""
    rng = random.Random(f"{seed}/{number}")
    (kind,) = rng.choices(kinds, [1 / MILLISECONDS.get(kind, 1) for kind in kinds])
    return kind, mutated(kind, rng)


def corpus():
    """Kind and content of every committed hostile file."""
    return [(kind_of(path.name, READERS), path.read_bytes()) for path in sorted(CORPUS.iterdir())]


def warm():
    """Read whole files once, without threads, so that the children need not import what their readers do."""
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        image_endings()  # Pillow registers its formats
        for kind, readers in READERS.items():
            for content in whole(kind)[:WARMED]:
                for read in (read for read in readers if read not in THREADED):
                    told_by(read, put(Path(folder), kind, content))


def put(base, kind, content):
    """The path of an input, alone in a fresh folder."""
    folder = base / FOLDER
    shutil.rmtree(base, ignore_errors=True)
    folder.mkdir(parents=True)
    path = folder / file_name(kind)
    path.write_bytes(content)
    return path


def run(inputs, first, stop, deadline=None, readers=READERS, workers=1):
    """Try the inputs `first` … `stop` − 1 of the function `inputs` (number → ending, content) until the deadline."""
    report, children = Report(), [_Child(inputs, first + i, stop, workers, deadline, readers) for i in range(workers)]
    try:
        while children:
            time.sleep(POLL_SECONDS)
            for child in list(children):
                if child.poll(report):
                    children.remove(child)
    finally:
        for child in children:
            child.end()
    return report


class _Child:
    """A child that tries every `step`-th input from `start` on, and those after it, one after the other."""

    def __init__(self, inputs, start, stop, step, deadline, readers):
        self.inputs, self.stop, self.step, self.deadline, self.readers = inputs, stop, step, deadline, readers
        self.folder = Path(tempfile.mkdtemp(prefix="fuzz-", dir=IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None))
        self.state = mmap.mmap(-1, STATE.size)
        self._fork(start)

    def _fork(self, start):
        self.started = start
        self.state[:] = STATE.pack(start, time.monotonic(), 0.0)
        self.results = self.folder / "results"
        self.results.write_bytes(b"")
        self.process = os.fork()
        if self.process == 0:
            try:
                self._work(start)
                os._exit(0)
            except BaseException:
                traceback.print_exc(file=sys.__stderr__)
                os._exit(99)

    def _work(self, start):
        """In the child: try inputs, a line of results for each."""
        warnings.simplefilter("ignore")
        inherited = max(0, _most_bytes() - WARM_BYTES)  # within a test run the parent holds more than a reader needs
        with open(self.results, "a") as results, contextlib.redirect_stdout(io.StringIO()):
            for done, number in enumerate(range(start, self.stop, self.step)):
                over = self.deadline is not None and time.monotonic() > self.deadline
                self.state[:] = STATE.pack(number if not over else self.stop, time.monotonic(), time.process_time())
                if over or done == INPUTS_A_CHILD:
                    break
                began = time.process_time()
                found = self._tried(*self.inputs(number))
                found["spent"] = time.process_time() - began
                found["bytes"] = _most_bytes() - inherited
                results.write(json.dumps(found) + "\n")
                results.flush()
                self.state[:] = STATE.pack(number + self.step, time.monotonic(), time.process_time())
                if found["bytes"] > MOST_BYTES:
                    break

    def _tried(self, kind, content):
        found = {"read": 0, "refused": 0, "seconds": 0.0, "kind": kind, "faults": []}
        for place, read in enumerate(self.readers[kind]):
            path = put(self.folder / "tried", kind, content)
            started = time.process_time()
            told = told_by(read, path)
            found["seconds"] = max(found["seconds"], time.process_time() - started)
            found["refused" if told == "refused" else "read"] += 1
            if told not in ("read", "refused"):
                found["faults"].append((place, told))
        return found

    def poll(self, report):
        """Whether the child has tried its last input; a hanging or broken one is noted and followed by another."""
        ended, status = os.waitpid(self.process, os.WNOHANG)
        number, since, used_before = STATE.unpack(self.state[:])
        kind = None
        if not ended:
            used = _processor_seconds(self.process) - used_before
            if used <= HANG_SECONDS and time.monotonic() - since <= WAIT_SECONDS:
                return False
            os.kill(self.process, signal.SIGKILL)
            os.waitpid(self.process, 0)
            kind, told = "hang", f"{used:.1f} s of the processor, {time.monotonic() - since:.1f} s of the clock"
        elif status:
            kind, told = "crash", f"status {status}"
        self._collect(report)
        if kind is not None:
            of, content = self.inputs(number)
            report.inputs += 1
            report.faults.append(Fault(kind, "", of, told, content))
            number += self.step
        if number >= self.stop or (self.deadline is not None and time.monotonic() > self.deadline):
            self.end(running=False)
            return True
        self._fork(number)
        return False

    def _collect(self, report):
        """The results that the child has left, in the order of its inputs."""
        number = self.started
        for line in self.results.read_text().splitlines():
            found = json.loads(line)
            one = Report(1, found["read"], found["refused"], found["seconds"], found["bytes"])
            one.of_kind[found["kind"]], one.seconds[found["kind"]] = 1, found["spent"]
            report.add(one)
            for place, told in found["faults"]:
                of, content = self.inputs(number)
                reader = getattr(self.readers[of][place], "__name__", str(place))
                report.faults.append(Fault("exception", reader, of, told, content))
            if found["bytes"] > MOST_BYTES:
                of, content = self.inputs(number)
                report.faults.append(Fault("memory", "", of, f"{found['bytes']:,} bytes", content))
            number += self.step

    def end(self, running=True):
        if running:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has ended since
                os.kill(self.process, signal.SIGKILL)
                os.waitpid(self.process, 0)
        shutil.rmtree(self.folder, ignore_errors=True)


def _most_bytes():
    """Most memory that this process has held so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _processor_seconds(process):
    """Seconds of the processor that a running child has taken (proc(5), fields 14 and 15)."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended, or the system has no /proc: the clock tells
        return 0.0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def told_by(read, path):
    """Tells "read", "refused" (one sentence with the file's name), or what else the reader raised."""
    try:
        read(path)
        return "read"
    except (ValueError, OSError) as error:
        text, name = str(error), called_by(read, path)
        if type(error) in (ValueError, OSError, FileNotFoundError) or type(error).__module__.startswith("fastfid"):
            if (
                "\n" not in text
                and name in text
                and len(text) < LONGEST_SENTENCE
                and getattr(error, "errno", None) is None
            ):
                return "refused"
        return f"{type(error).__name__}: {text[:300]!r} does not name {name} in one line"
    except BaseException as error:
        return "".join(traceback.format_exception(error)[-3:])[-600:]
