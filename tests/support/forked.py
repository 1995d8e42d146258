"""Commands in children of one process that has already imported everything, which takes seconds on a slow core.

As a script: a server that reads one request a line, a JSON list of jobs run side by side, and answers with a line of
results. A job: argv of `module`, by default sit_rl.train, env, and when to interfere: `after` seconds or once a file
matching `when` is there, `signal` is sent, and once the other jobs have ended KILL, where `release` says so; `die` =
[name, n] kills the job inside the n-th call of os.<name>.
"""

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from glob import glob
from pathlib import Path

ROOT = Path(__file__).parents[2]


class Forked:
    """Client of the server; `run` takes jobs and returns their results.  The server also imports `modules`."""

    def __init__(self, *modules):
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, __file__, *modules],
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            cwd=ROOT,
        )

    def run(self, *jobs):
        """Results {code, out, seconds, signalled} of jobs run side by side; code is negative for a signal."""
        self.process.stdin.write(json.dumps(jobs) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def ranks(self, count, argv, module="sit_rl.train", env=None, **interference):
        """The same command on `count` ranks of one machine; `interference` goes to the last rank."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        world = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = (env or {}) | world
        jobs = [{"argv": argv, "module": module, "env": env | {"RANK": r, "LOCAL_RANK": r}} for r in range(count)]
        jobs[-1] |= interference
        return self.run(*jobs)

    def close(self):
        """End the server."""
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


def serve():
    """Answer requests until the input ends."""
    import matplotlib.pyplot  # noqa: F401
    import scipy.linalg  # noqa: F401
    import torch
    from torch.utils.tensorboard import SummaryWriter  # noqa: F401

    import sit_rl.runs.forecast
    import sit_rl.train
    from sit_rl.models.sit import SiT, SiTConfig

    for name in sys.argv[1:]:
        importlib.import_module(name)
    torch.set_num_threads(1)
    with torch.device("meta"):
        SiT(SiTConfig(width=72, depth=1, heads=1))  # imports what the first model on the meta device does
    sit_rl.runs.forecast.measure_rate = lambda *_: 1000.0  # it measures for a second
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        jobs = [Job(**job) for job in json.loads(line)]
        while running := [job for job in jobs if job.poll()]:
            if all(job.release for job in running):
                for job in running:
                    os.kill(job.pid, signal.SIGKILL)
            time.sleep(0.005)
        answers.write(json.dumps([job.result for job in jobs]) + "\n")
        answers.flush()


class Job:
    """One child."""

    def __init__(
        self, argv, module="sit_rl.train", env=None, after=None, when=None, signal="KILL", die=None, release=False
    ):
        self.after, self.when, self.signal, self.release, self.result = after, when, signal, release, None
        self.out, self.started, self.signalled = tempfile.TemporaryFile(), time.monotonic(), None
        self.pid = os.fork()
        if self.pid == 0:
            self._work(module, argv, env or {}, die)

    def _work(self, module, argv, env, die):
        code = 1
        try:
            os.dup2(self.out.fileno(), 1)
            os.dup2(self.out.fileno(), 2)
            os.environ.update({k: str(v) for k, v in env.items()})
            if die:
                die_inside(*die)
            importlib.import_module(module).main(list(map(str, argv)))
            code = 0
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self):
        """Whether it still runs; interferes when it is time to."""
        if self.result is not None:
            return False
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        now = time.monotonic()
        if pid:
            self.out.seek(0)
            self.result = {
                "code": os.waitstatus_to_exitcode(status),
                "out": self.out.read().decode(errors="replace"),
                "seconds": now - self.started,
                "signalled": self.signalled and self.signalled - self.started,
            }
            self.out.close()
            return False
        due = (self.after is not None and now - self.started > self.after) or (self.when and glob(self.when))
        if due and self.signalled is None:
            self.signalled = now
            os.kill(self.pid, getattr(signal, f"SIG{self.signal}"))
        return True


def die_inside(name, n):
    """Kill this process in the n-th call of os.<name>, before it does anything."""
    original, calls = getattr(os, name), []

    def deadly(*arguments, **options):
        calls.append(arguments)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **options)

    setattr(os, name, deadly)


if __name__ == "__main__":
    serve()
