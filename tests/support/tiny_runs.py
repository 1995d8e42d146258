"""A training of seconds, and what it leaves behind."""

import json

import numpy as np
import torch

from sit_rl.learner import checkpoint
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig

TINY = SiTConfig(
    image_size=28, patch_size=14, channels=1, width=32, depth=1, heads=2, num_classes=10, learn_sigma=False
)
STEPS = 5
# Adam divides a gradient by its own size: where a sum over ranks in another order turns a gradient near zero, a weight
# moves by up to a learning rate an update, here of at most 1e-4, twice a step.
WEIGHT_TOLERANCE_A_STEP = 2 * 1e-4


def tiny_command(folder):
    """A training of five short steps of a model of 40,000 parameters, as a function of its folder and more flags."""
    torch.manual_seed(0)
    model = SiT(TINY)
    for p in model.final_layer.parameters():
        torch.nn.init.normal_(p, std=0.1)
    path = folder / "tiny.safetensors"
    save_model(model, path)
    flags = (
        f"--preset smoke --threads 1 --checkpoint {path} --steps {STEPS} --embedded-images 200 --reference-size 60 "
        "--replace 5 --candidates 4 --minibatch 10 --rollout-batch 5 --evaluate-images 20 --evaluate-every 2 "
        "--evaluate-every-images 20 --judge-features none"
    ).split()
    return lambda out, *more: [*flags, "--out", str(out), *map(str, more)]


def completed(forked, argv, **when):
    """The result of a training in a forked process, which must end well; `when` as of forked.run."""
    (result,) = forked.run({"argv": argv, **when})
    assert result["code"] == 0, result["out"]
    return result


def final(folder):
    """Every tensor of the last checkpoint."""
    path = checkpoint.latest(folder / "checkpoints")
    tensors = {name: torch.empty(shape, dtype=dtype) for name, (shape, dtype) in checkpoint.names(path).items()}
    checkpoint.load_tensors(path, tensors)
    return tensors, checkpoint.load_values(path)


def lines(folder):
    """metrics.jsonl without what a clock says."""
    timed = ("seconds", "share", "predicted_seconds")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in record.items() if k not in timed} for record in records]


def all_ended(results):
    """Every forked process must have ended well."""
    for result in results:
        assert result["code"] == 0, result["out"]


def assert_same_training(folder, other):
    """Images and rewards of the first step bit for bit; later ones and the weights to the rounding of a sum."""
    first, second = lines(folder), lines(other)
    assert first[0]["subset_rewards"] == second[0]["subset_rewards"]
    assert first[0]["reference_fd"] == second[0]["reference_fd"]
    for a, b in zip(first, second, strict=True):
        np.testing.assert_allclose(a["subset_rewards"], b["subset_rewards"], rtol=1e-3)
        np.testing.assert_allclose(a["gradient_norm"], b["gradient_norm"], rtol=1e-3)
    (a, _), (b, _) = final(folder), final(other)
    assert a.keys() == b.keys()
    for name in a:
        if name.startswith(("model.", "ema.")):
            torch.testing.assert_close(a[name], b[name], rtol=0, atol=len(first) * WEIGHT_TOLERANCE_A_STEP)
