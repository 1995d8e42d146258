"""What test files share; one torch thread for every test, as two threads of a small problem only wait.

GPUs are hidden from all tests but tests/test_gpu.py, which runs alone: trainings and their children would otherwise
take one where there is one, and the tests are of what a CPU does bit for bit.
"""

import os
import sys

import pytest
import torch

from tests.support.forked import Forked

torch.set_num_threads(1)
if not any("test_gpu" in word for word in sys.argv):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read when CUDA is first asked for


@pytest.fixture(scope="module")
def forked():
    """Trainings in children of one warm process."""
    server = Forked()
    yield server
    server.close()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Flags of a tiny training, as a function of its folder and more flags."""
    from tests.support.tiny_runs import tiny_command

    return tiny_command(tmp_path_factory.mktemp("tiny"))
