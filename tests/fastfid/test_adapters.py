"""The reward in other trainers: the examples, with the calls that those trainers make."""

import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from examples.trainers import flow_grpo_score, plain_loop, trl_score
from fastfid import DistributionReward
from fastfid.rewards import flow_grpo_reward, trl_reward
from tests.support.small_network import small

pytestmark = pytest.mark.usefixtures("own_cache")
COUNT = 40


def blobs(n, seed, shift=0.0):
    """Float images [n, 1, 16, 16] of the example's generator, its blobs moved."""
    generator = plain_loop.Blobs()
    with torch.no_grad():
        generator.place += shift
        return generator(torch.randn(n, 2, generator=torch.Generator().manual_seed(seed)))


@pytest.fixture(scope="module")
def real():
    return (blobs(80, 1, 3.0) * 255).round().to(torch.uint8)


@pytest.fixture
def expected(real):
    """Scores of the first and the second eight images by the plain class."""
    reward = DistributionReward(real, small()[0], size=COUNT)
    return [reward(blobs(COUNT, 2)), reward(blobs(8, 3))]


def test_plain_loop(real):
    _, before, after = plain_loop.train(real, small()[0], steps=8, count=16, size=COUNT)
    assert after["small"] < 0.5 * before["small"]


def test_flow_grpo(real, expected):
    score = flow_grpo_score.distribution_score("cpu", real, small()[0], COUNT)
    scores, metadata = score(blobs(COUNT, 2), [""] * COUNT, [{}] * COUNT, only_strict=True)
    np.testing.assert_array_equal(scores, expected[0])
    arrays = (blobs(8, 3) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()  # as from a PIL pipeline
    scores, metadata = score(arrays, [""] * 8, [{}] * 8)
    np.testing.assert_array_equal(scores, expected[1])
    assert [2.0 * s for s in scores] and list(metadata) == ["small"]  # flow_grpo weighs each score
    with pytest.raises(ValueError, match="flow_grpo's images run from 0 to 1"):
        flow_grpo_reward(DistributionReward(real, small()[0], value_range=(-1, 1)))


def test_trl(real, expected):
    score = trl_score.distribution_score(real, small()[0], COUNT)
    logged = {}
    more = {"completion_ids": None, "trainer_state": None, "log_extra": None, "log_metric": logged.__setitem__}
    found = score(prompts=["p"] * COUNT, completions=list(blobs(COUNT, 2)), **more)
    assert found == expected[0].tolist()
    pictures = [Image.fromarray(x[0].numpy()) for x in (blobs(8, 3) * 255).round().to(torch.uint8)]
    assert score(prompts=["p"] * 8, completions=pictures, **more) == expected[1].tolist()
    assert list(logged) == ["distribution/small"] and score.__name__ == "distribution"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"completions": [Image.new("P", (4, 4))]}, "an image has mode P; convert it to RGB or L"),
        ({"completions": [torch.zeros(1, 4, 4), torch.zeros(1, 5, 5)]}, r"images have the shapes \(1, 4, 4\) and"),
        ({"prompts": ["a"]}, "reads its images or labels from 'completions', and was given prompts"),
        ({"completions": []}, "there are no images"),
        ({"completions": ["a text"]}, "an image cannot be read as a tensor"),
        ({"completions": [np.zeros(3, np.uint8)]}, r"an image has shape \(3,\)"),
    ],
)
def test_trl_refuses_in_one_sentence(real, arguments, message):
    score = trl_reward(DistributionReward(real, small()[0], size=COUNT))
    with pytest.raises(ValueError, match=message):
        score(**arguments)


# --- Lightning -------------------------------------------------------------------------------------------------------


@pytest.fixture
def callbacks(monkeypatch):
    """The example of the callback, with a stand-in for Lightning where that is not installed."""
    try:
        import lightning.pytorch  # noqa: F401
    except ImportError:
        for name in ("lightning", "lightning.pytorch", "lightning.pytorch.callbacks"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        sys.modules["lightning.pytorch.callbacks"].Callback = type("Callback", (), {})
    for name in ("fastfid.evaluation.lightning_callback", "examples.trainers.lightning_metrics"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    from examples.trainers import lightning_metrics

    return lightning_metrics


class Recording(nn.Module):
    """The part of a LightningModule that the callback uses."""

    device = "cpu"

    def __init__(self):
        super().__init__()
        self.generator, self.logged, self.modes = plain_loop.Blobs(), [], []

    def forward(self, noise):
        self.modes.append(self.training)
        return self.generator(noise)

    def log_dict(self, values):
        self.logged.append(values)


def test_lightning_callback(callbacks, real):
    other = (blobs(80, 9, 3.0) * 255).round().to(torch.uint8)
    callback = callbacks.metrics(real, other, small()[0], images=60, every_n_epochs=2)
    module = Recording()
    for epoch in range(4):
        torch.manual_seed(0)
        callback.on_train_epoch_end(SimpleNamespace(current_epoch=epoch), module)
    assert len(module.logged) == 2 and module.logged[0] == module.logged[1]
    found = module.logged[0]
    assert list(found) == ["fd/small", "fdr/small", "precision/small", "recall/small"]
    assert found["fd/small"] > 0 and found["fdr/small"] == pytest.approx(found["fd/small"] / callback.scale)
    assert found["fdr/small"] > 1 and 0 <= found["precision/small"] <= 1
    assert module.training and not any(module.modes)
    # real images in the place of generated ones
    callback.generate = lambda module, n: other[:n]
    assert callback.measure(module)["fdr/small"] < found["fdr/small"] / 2
    callback.generate = lambda module, n: other[:3]
    with pytest.raises(ValueError, match="generate returned 3 images and was asked for 60"):
        callback.measure(module)


# Asked when the file is read: a stand-in takes the place of the module in the other tests.
@pytest.mark.skipif(find_spec("lightning") is None, reason="pip install 'fastfid[lightning]'")
def test_lightning_callback_by_the_real_trainer(callbacks, real, tmp_path):
    import lightning.pytorch as pl

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.generator = plain_loop.Blobs()

        def forward(self, noise):
            return self.generator(noise)

        def training_step(self, batch, index):
            return self(batch[0]).mean()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callback = callbacks.metrics(real, None, small()[0], images=30, every_n_epochs=1)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(4, 2)), batch_size=2)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(Module(), data)
    assert {"fd/small", "precision/small", "recall/small"} <= set(trainer.callback_metrics)
