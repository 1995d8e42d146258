"""A shared reward on two ranks gives the scores of one process, and an error of one rank stops both."""

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist

from fastfid import DistributionReward
from tests.support.small_network import pixels, small


def images(n, seed):
    return torch.from_numpy(pixels(n, seed))[:, None]


pytestmark = pytest.mark.usefixtures("own_cache")
REAL, SET, NEW = images(60, 1), images(40, 2), images(9, 3)
PROMPTS = [f"prompt {i % 3}" for i in range(40)]


def share(x, rank, world):
    """A rank's part: the first has a third."""
    first = len(x) // 3
    return x if world == 1 else x[:first] if rank == 0 else x[first:]


def work(rank, world):
    """What a rank finds, in the order of its images."""
    reward = DistributionReward(REAL, small()[0], size=len(SET))
    reward.refresh(share(SET, rank, world), share(PROMPTS, rank, world))
    # rank 0 first meets prompts that rank 1 met in another order
    new = share(["prompt 2", "b", "a", "prompt 0", "c", "a", "b", "prompt 1", "c"], rank, world)
    scores = reward(share(NEW, rank, world), new)
    again = reward(share(NEW.flip(0), rank, world), new)
    found = {"scores": scores, "again": again, "distances": reward.distances, "state": reward.state_dict()}
    try:
        reward(NEW if rank == world - 1 else NEW.float() - 9)
    except Exception as error:
        found["error"] = str(error)
    return found


def process(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(work(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()
    os._exit(0)


def test_two_ranks_score_as_one(tmp_path):
    forks = multiprocessing.get_context("fork")  # this process has imported everything
    children = [forks.Process(target=process, args=(rank, tmp_path)) for rank in (0, 1)]
    for child in children:
        child.start()
    for child in children:
        child.join(60)
    assert [child.exitcode for child in children] == [0, 0]
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = work(0, 1)
    for name in ("scores", "again"):
        # features of other batches may differ in their last bits
        torch.testing.assert_close(torch.cat([first[name], second[name]]), alone[name], rtol=1e-3, atol=1e-3)
    assert first["distances"] == second["distances"] and first["state"]["units"] == second["state"]["units"]
    assert first["distances"]["small"] == pytest.approx(alone["distances"]["small"], rel=1e-4)
    for state in (first["state"], second["state"]):
        assert state["texts"] == alone["state"]["texts"]
        torch.testing.assert_close(state["rows"]["small"], alone["state"]["rows"]["small"], rtol=1e-4, atol=1e-6)
        assert torch.equal(state["keys"], alone["state"]["keys"])
    assert first["error"] == second["error"] and first["error"].startswith("images run from -9 to ")


@pytest.mark.parametrize("shared", [True, False])
def test_one_process_needs_no_group(shared):
    reward = DistributionReward(REAL, small()[0], size=len(SET), shared=shared)
    reward.refresh(SET)
    assert reward(NEW).shape == (9,)
