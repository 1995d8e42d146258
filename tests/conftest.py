"""What test files share; one torch thread for every test, as two threads of a small problem only wait.

GPUs are hidden from the tests, as trainings and their children would otherwise take one where there is one, and the
tests are of what a CPU does bit for bit.  FASTFID_TEST_GPU=1 shows them: to tests/test_gpu.py alone, whose tests are
skipped without it.  The last lines of a run without it say if there was a GPU.
"""

import pytest
import torch

from tests.support import gpus
from tests.support.forked import Forked

torch.set_num_threads(1)
gpus.hide()


def pytest_collection_modifyitems(config, items):
    """With a GPU in sight only the tests that are made for one run, however pytest was called."""
    shown, hidden = gpus.split(items)
    if hidden:
        config.hook.pytest_deselected(items=hidden)
        items[:] = shown


def pytest_terminal_summary(terminalreporter):
    """Says that a GPU was there and not used."""
    if line := gpus.unused():
        terminalreporter.write_line(line)


@pytest.fixture(scope="session")
def forked():
    """Commands in children of one warm process, which starts once: it imports for ten seconds."""
    server = Forked()
    yield server
    server.close()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Flags of a tiny training, as a function of its folder and more flags."""
    from tests.support.tiny_runs import tiny_command

    return tiny_command(tmp_path_factory.mktemp("tiny"))
