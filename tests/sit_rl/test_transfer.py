"""Copies to a device go through pinned memory and wait for nothing; others are plain."""

import torch

from sit_rl.ranks.transfer import to_device
from sit_rl.rollout import noise_source
from sit_rl.sampling.random_streams import Stream
from sit_rl.sampling.sampler_config import SamplerConfig
from tests.support.pretend_cuda import Account, pretended


def test_a_copy_to_a_gpu_is_pinned_and_waits_for_nothing():
    x, account = torch.arange(6.0), Account()
    with pretended(account) as cuda:
        found = to_device(x.clone(), cuda)
        assert found.device == cuda and account.waits == [] and to_device(found, cuda) is found
        assert torch.equal(found.cpu(), x)
        x.to(cuda)
    assert account.waits == ["copy to the host", "copy from memory that is not pinned"]


def test_noise_waits_on_the_host_and_is_the_cpus():
    """A device holds the noise of one step, and no copy waits for the steps before it."""
    sampler, like, account = SamplerConfig(kind="sde", method="euler", steps=4), torch.zeros(3, 2, 5, 5), Account()
    given = 7, Stream.SDE, 1, range(2, 5), sampler
    of_host = noise_source(*given, like)
    with pretended(account) as cuda:
        of_device = noise_source(*given, like.to(cuda))
        account.waits.clear()
        found = [of_device(i) for i in range(3)]
        assert account.waits == [] and all(x.device == cuda for x in found)
        assert all(torch.equal(x.cpu(), of_host(i)) for i, x in enumerate(found))


def test_on_the_host_nothing_is_copied():
    x = torch.arange(6.0)
    assert to_device(x, torch.device("cpu")) is x
