"""What test files share; one torch thread for every test, as two threads of a small problem only wait."""

import pytest
import torch
from forked import Forked

torch.set_num_threads(1)


@pytest.fixture(scope="module")
def forked():
    """Trainings in children of one warm process."""
    server = Forked()
    yield server
    server.close()


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """Flags of a tiny training, as a function of its folder and more flags."""
    from test_survival import tiny_command

    return tiny_command(tmp_path_factory.mktemp("tiny"))
