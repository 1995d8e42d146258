"""sit_rl/slurm/torchrun.sh with a torchrun that, like the real one, ends with an error where a signal reaches it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "sit_rl" / "slurm" / "torchrun.sh"
# Two ranks that save for 0.3 s when told by USR1; the launcher returns its first argument, or the worst of its ranks.
TORCHRUN = f"""#!{sys.executable}
import pathlib, signal, subprocess, sys
if sys.argv[1] != "wait":
    raise SystemExit(int(sys.argv[1]))
rank = '''
import pathlib, signal, sys, time
def save(*_):
    time.sleep(0.3)
    raise SystemExit(int(sys.argv[2]))
signal.signal(signal.SIGUSR1, save)
pathlib.Path(sys.argv[1]).touch()
time.sleep(60)
raise SystemExit(9)
'''
ranks = [subprocess.Popen([sys.executable, "-c", rank, sys.argv[2] + str(i), sys.argv[3]]) for i in range(2)]
raise SystemExit(max(r.wait() for r in ranks))
"""


@pytest.fixture
def start(tmp_path):
    (tmp_path / "torchrun").write_text(TORCHRUN)
    (tmp_path / "torchrun").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    return lambda *arguments: subprocess.Popen(["bash", SCRIPT, *map(str, arguments)], env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("code", [0, 4])
def test_a_signal_goes_to_the_ranks_and_what_they_return_comes_back(start, tmp_path, number, code):
    script, deadline = start("wait", tmp_path / "ready", code), time.monotonic() + 30
    while not all((tmp_path / f"ready{i}").exists() for i in range(2)) and time.monotonic() < deadline:
        time.sleep(0.02)
    script.send_signal(number)
    assert script.wait(30) == code


@pytest.mark.parametrize("code", [0, 1, 3])
def test_without_a_signal_it_is_torchrun(start, code):
    assert start(code).wait(30) == code
