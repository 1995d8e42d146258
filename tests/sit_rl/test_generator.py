"""Loading what makes images: files of weights, run folders, autoencoders."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from sit_rl import sample
from sit_rl.config import resolve
from sit_rl.learner import checkpoint
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.sample import SampleConfig
from tests.support.tiny_samples import COLOUR, pixels, randomised, run, stopped_by


def test_latents_go_through_the_autoencoder(tmp_path, capsys):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, latent_channels=4, **blocks).eval()
    vae.save_pretrained(tmp_path / "vae")
    config = SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=5)
    save_model(randomised(SiT(config)), tmp_path / "m.safetensors")
    run(tmp_path / "m.safetensors", tmp_path / "s.npz", "--vae", tmp_path / "vae", images=3)
    record = json.loads((tmp_path / "s.npz.json").read_text())
    assert "flash needs an NVIDIA GPU" in record["runs"][0]["attention"]
    assert record["image_shape"] == [3, 8, 8] and len(record["model"]["vae"]["sha256"]) == 64
    made = sample.load_generator(
        SampleConfig(checkpoint=tmp_path / "m.safetensors", vae=tmp_path / "vae"), torch.device("cpu")
    )
    z = torch.randn(2, 4, 4, 4)
    with torch.no_grad():
        expected = (127.5 * vae.decode(z / 0.18215).sample + 128).clamp(0, 255).to(torch.uint8)
    assert (made.decode(z).int() - expected.int()).abs().max() <= 1
    for name, changes, told in (
        ("wide", {"latent_channels": 8}, r"does not decode the model's samples of 4 × 4 × 4 .*; pass the autoencoder"),
        ("grey", {"in_channels": 2, "out_channels": 2}, "decodes to images of 2 channels, not 1 or 3"),
        ("vae", {"latent_channels": 4}, "holds images of another vae sha256"),  # other weights in the same folder
        ("other", {"latent_channels": 4}, "holds images of another vae folder: vae, not other; choose another --out"),
    ):
        diffusers.AutoencoderKL(block_out_channels=[8, 8], norm_num_groups=4, **blocks, **changes).save_pretrained(
            tmp_path / name
        )
        error = stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / "s.npz", "--vae", tmp_path / name, images=3)
        assert re.search(told, error), error


@pytest.fixture
def run_folder(tmp_path):
    """A run that began from other weights than the fixture's model."""
    save_model(randomised(SiT(COLOUR), seed=1), tmp_path / "base.safetensors")
    folder = tmp_path / "run"
    folder.mkdir()

    def make(tensors=None, **fields):
        resolve(PRESETS["smoke"][1]).changed(checkpoint=tmp_path / "base.safetensors", **fields).save(
            folder / "config.yaml"
        )
        if tensors is not None:
            writer = checkpoint.Writer(folder / "checkpoints", keep=1)
            writer.save(7, {f"ema.{name}": value.detach() for name, value in tensors.items()}, {"step": 7})
            writer.wait()
        return folder

    return make


def test_run_folder_gives_its_averaged_weights(run_folder, whole, tmp_path):
    folder = run_folder(dict(randomised(SiT(COLOUR)).named_parameters()))
    run(folder, tmp_path / "a")
    np.testing.assert_array_equal(pixels(tmp_path / "a"), whole)
    assert json.loads((tmp_path / "a" / "sampling.json").read_text())["model"]["weights"] == "EMA at step 7"


def test_finished_run_gives_its_last_average(run_folder, colour, whole, tmp_path):
    shutil.copy(colour, run_folder() / "ema.safetensors")
    run(tmp_path / "run", tmp_path / "a")
    np.testing.assert_array_equal(pixels(tmp_path / "a"), whole)


def test_run_of_lora_terms_is_merged(run_folder, tmp_path):
    """The adapted model restated: y = W x + B A x beside every linear layer of the blocks."""
    pytest.importorskip("peft")
    from sit_rl.models.lora import add_lora

    adapted = randomised(SiT(COLOUR), seed=1)
    add_lora(adapted, 2, 0)
    torch.manual_seed(2)
    for name, p in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(p, std=0.3)
    folder = run_folder(dict(adapted.named_parameters()), lora=2)
    made = sample.load_generator(SampleConfig(checkpoint=folder), torch.device("cpu"))
    x, t, y = torch.randn(3, 3, 8, 8), torch.rand(3), torch.arange(3)
    with torch.no_grad():
        # Merged and separate products differ by float32 rounding of sums of 32 terms: 1e-6 of the outputs' scale.
        torch.testing.assert_close(made.model(x, t, y), adapted(x, t, y), rtol=1e-4, atol=1e-5)
        assert (adapted(x, t, y) - randomised(SiT(COLOUR), seed=1)(x, t, y)).abs().max() > 1e-2


def test_a_run_seen_from_another_place_names_what_it_cannot_find(run_folder, tmp_path, capsys):
    """A run keeps the paths that it was given, relative ones as they are."""
    weights = dict(SiT(COLOUR).named_parameters())
    told = stopped_by(capsys, run_folder(weights, vae=Path("elsewhere")), tmp_path / "a")
    assert "was trained with --vae elsewhere, which does not exist now; pass --vae" in told
    (tmp_path / "base.safetensors").unlink()
    told = stopped_by(capsys, run_folder(), tmp_path / "a")
    assert f"was trained with --checkpoint {tmp_path}/base.safetensors, which does not exist now; work where" in told


def test_run_without_a_checkpoint(run_folder, tmp_path, capsys):
    assert "holds no weights yet" in stopped_by(capsys, run_folder(), tmp_path / "a")


def test_latents_without_autoencoder(tmp_path, capsys):
    config = SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=5)
    save_model(SiT(config), tmp_path / "m.safetensors")
    assert "needs --vae" in stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / "a")


def test_diverged_weights_stop_with_the_image(tmp_path, capsys):
    model = randomised(SiT(COLOUR))
    bias = model.final_layer.linear.bias
    for value, told in (
        (3e38, "image 0 of seed 0 is not finite"),  # finite itself, and not when it is added to
        (float("nan"), "weight final_layer.linear.bias of --checkpoint"),  # seen before any work
    ):
        torch.nn.init.constant_(bias, value)
        save_model(model, tmp_path / "m.safetensors")
        assert told in stopped_by(capsys, tmp_path / "m.safetensors", tmp_path / f"a{value}")
    assert not (tmp_path / "anan").exists()
