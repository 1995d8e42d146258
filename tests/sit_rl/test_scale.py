"""One run on one rank or several, whole or sharded, saved on some and resumed on others: the same training."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch.distributed as dist

from sit_rl.learner import checkpoint
from sit_rl.ranks.process_group import LOST_RANK, agree_on_start
from tests.support.tiny_runs import all_ended, assert_same_training, completed, lines


@pytest.fixture(scope="module")
def one(forked, command, tmp_path_factory):
    """The run on one rank."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    completed(forked, command(folder))
    return folder


@pytest.mark.parametrize("count, how", [(2, "ddp"), (4, "ddp"), (2, "fsdp")])
def test_ranks_give_the_images_the_rewards_and_the_weights_of_one(forked, command, one, tmp_path, count, how):
    all_ended(forked.ranks(count, command(tmp_path / "run", "--parallel", how)))
    assert_same_training(tmp_path / "run", one)
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["ranks"] == count


def test_shards_travel_in_bfloat16_and_give_one_ranks_images(forked, command, tmp_path):
    """Autocast rounds a block's weights to bfloat16, so whether they travelled as bfloat16 changes no image."""
    flags = ("--precision", "bf16", "--steps", 2)
    all_ended(forked.run({"argv": command(tmp_path / "one", *flags)}))
    all_ended(forked.ranks(2, command(tmp_path / "run", *flags, "--parallel", "fsdp")))
    first, second = lines(tmp_path / "run"), lines(tmp_path / "one")
    assert first[0]["subset_rewards"] == second[0]["subset_rewards"]
    # a gradient is summed from two ranks' bfloat16 parts, 2⁻⁹ each
    np.testing.assert_allclose(first[0]["gradient_norm"], second[0]["gradient_norm"], rtol=2e-2)


@pytest.mark.parametrize("how", ["ddp", "fsdp"])
def test_a_rank_without_a_batch_takes_part_in_a_policy_gradient(forked, command, tmp_path, how):
    """64 GPUs share the 32 batches of the SiT preset's step: half of them own no path."""
    flags = ("--rollout-batch", 20, "--estimator", "sde_policy_gradient", "--steps", 2)
    all_ended(forked.run({"argv": command(tmp_path / "one", *flags)}))
    all_ended(forked.ranks(2, command(tmp_path / "run", *flags, "--parallel", how)))
    assert_same_training(tmp_path / "run", tmp_path / "one")


@pytest.mark.parametrize("then", [1, 4])
def test_saved_on_two_ranks_resumed_on_another_number(forked, command, one, tmp_path, then):
    """Sharded weights, moments and averages are cut anew; what was saved is what goes on."""
    folder = tmp_path / "run"
    parts = ("--parallel", "fsdp", "--keep-checkpoints", 20)
    third = str(folder / "checkpoints" / "step-000003")
    results = forked.ranks(2, command(folder, *parts), when=third, signal="TERM")
    all_ended(results)
    assert "stopped on request" in results[0]["out"] and not (folder / "summary.json").exists()
    stopped = checkpoint.latest(folder / "checkpoints")
    assert len(list(stopped.glob("shard-*"))) == 2
    all_ended(
        forked.ranks(then, command(folder, *parts)) if then > 1 else forked.run({"argv": command(folder, *parts)})
    )
    assert_same_training(folder, one)
    assert len(list(checkpoint.latest(folder / "checkpoints").glob("shard-*"))) == then


@pytest.mark.parametrize("name", ["KILL", "STOP"])
def test_a_dead_rank_ends_the_other_with_an_error_in_time(forked, command, tmp_path, name):
    """KILL closes its connections; STOP leaves them open, as a machine that has lost its network does."""
    folder, dead_after = tmp_path / "run", 3.0
    first = str(folder / "checkpoints" / "step-000001")
    argv = command(folder, "--dead-after", dead_after, "--steps", 500)
    alive, dead = forked.ranks(2, argv, when=first, signal=name, release=True)
    assert alive["code"] in (2, LOST_RANK) and "error: " in alive["out"], alive["out"]
    assert "run the same command again, it resumes" in alive["out"]
    # a sign of life a tenth of the time, and a second for a slow core
    assert alive["seconds"] - dead["signalled"] < 1.1 * dead_after + 1


def test_a_start_never_reads_what_an_earlier_one_left_in_the_store():
    """`torchrun --max-restarts` starts ranks again on the store it keeps, also where one had died while greeting."""
    store = dist.HashStore()
    starts = []
    store.set("sit_rl/greeting/2", "of a rank that died")
    for _ in range(3):
        with ThreadPoolExecutor(4) as pool:
            words = list(pool.map(lambda number: agree_on_start(store, number, 4), range(4)))
        assert len(set(words)) == 1, words
        starts.append(words[0])
    assert len(set(starts)) == 3
