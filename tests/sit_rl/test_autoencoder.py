"""Latents to images and back through a small random AutoencoderKL, saved as diffusers saves the real one."""

import numpy as np
import pytest
import torch

from sit_rl.models.autoencoder import LATENT_SCALE, load_decoder, load_encoder

diffusers = pytest.importorskip("diffusers")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def vae():
    """Four levels as in sd-vae-ft-ema, so that images are 8 times the latents, but 8 channels wide."""
    torch.manual_seed(0)
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=4,
        sample_size=32,
    ).eval()


@pytest.fixture(scope="module")
def folder(vae, tmp_path_factory):
    path = tmp_path_factory.mktemp("vae")
    vae.save_pretrained(path)
    return path


def test_decoding_is_the_official_rounding(vae, folder):
    torch.manual_seed(1)
    latents = 3 * torch.randn(5, 4, 4, 4)
    with torch.no_grad():
        values = vae.decode(latents / 0.18215).sample.numpy()
    expected = np.clip(127.5 * values + 128.0, 0, 255).astype(np.uint8)  # truncation after + 128 rounds to nearest
    got = load_decoder(folder, CPU)(latents)
    assert got.shape == (5, 3, 32, 32) and got.dtype == torch.uint8
    # a slice of another size may round a value across a level: in float32 a few values in a million
    assert (got.numpy() != expected).mean() < 1e-3 and np.abs(got.numpy().astype(int) - expected).max() <= 1
    assert len(np.unique(expected)) > 50


def test_tf32_is_for_those_who_ask(folder, monkeypatch):
    """By the setting during the decoding: a CPU has no TF32 to show in the values."""
    allowed = []
    real = diffusers.AutoencoderKL.decode

    def decode(self, z):
        allowed.append(torch.backends.cudnn.allow_tf32)
        return real(self, z)

    monkeypatch.setattr(diffusers.AutoencoderKL, "decode", decode)
    assert torch.backends.cudnn.allow_tf32  # torch's default
    for tf32 in (False, True):
        load_decoder(folder, CPU, tf32=tf32)(torch.randn(1, 4, 4, 4))
    assert allowed == [False, True] and torch.backends.cudnn.allow_tf32


def test_batches_are_decoded_a_slice_at_a_time(folder, monkeypatch):
    sizes = []
    real = diffusers.AutoencoderKL.decode
    monkeypatch.setattr(
        diffusers.AutoencoderKL, "decode", lambda self, z, **options: sizes.append(len(z)) or real(self, z, **options)
    )
    latents = torch.randn(7, 4, 4, 4)
    sliced = load_decoder(folder, CPU, batch=3)(latents)
    assert sizes == [3, 3, 1]
    alone = torch.cat([load_decoder(folder, CPU)(z[None]) for z in latents])
    assert (sliced.int() - alone.int()).abs().max() <= 1
    assert load_decoder(folder, CPU)(latents[:0]).shape == (0, 3, 32, 32)


def test_tiles_bound_the_size_of_what_is_decoded(folder, monkeypatch):
    seen = []
    real = diffusers.models.autoencoders.vae.Decoder.forward
    monkeypatch.setattr(
        diffusers.models.autoencoders.vae.Decoder,
        "forward",
        lambda self, z, *rest: seen.append(z.shape[-1]) or real(self, z, *rest),
    )
    latents = torch.randn(1, 4, 12, 12)
    whole, tiled = (load_decoder(folder, CPU, tiled=tiled)(latents) for tiled in (False, True))
    assert seen[0] == 12 and max(seen[1:]) <= 4 and whole.shape == tiled.shape == (1, 3, 96, 96)


def test_encoding_is_scaled_and_inverts_the_pixel_scale(vae, folder):
    images = torch.randint(0, 256, (9, 3, 32, 32), dtype=torch.uint8)
    with torch.no_grad():
        posterior = vae.encode(images.float() / 127.5 - 1).latent_dist
    encode, noise = load_encoder(folder, CPU), torch.randn(9, 4, 4, 4)
    # 0.18215 times numbers of order 1, from convolutions of float32
    torch.testing.assert_close(encode(images), LATENT_SCALE * posterior.mean, atol=1e-5, rtol=1e-4)
    expected = LATENT_SCALE * (posterior.mean + posterior.std * noise)
    torch.testing.assert_close(encode(images, noise), expected, atol=1e-5, rtol=1e-4)


def test_other_folders_are_refused(vae, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        load_decoder(tmp_path, CPU)
    with pytest.raises(FileNotFoundError, match="config.json is a file; pass the folder"):
        load_decoder(folder / "config.json", CPU)
    other = diffusers.AutoencoderKL(**{**dict(vae.config), "scaling_factor": 0.13025})
    other.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="by 0.13025, SiT's and DiT's by 0.18215"):
        load_decoder(tmp_path, CPU)


def test_pixels_are_what_decoding_rounds_with_a_gradient(folder):
    torch.manual_seed(1)
    decoder, latents = load_decoder(folder, CPU), torch.randn(2, 4, 4, 4, requires_grad=True)
    pixels = decoder.pixels(latents)
    # rounding, and a value in a million that a slice of another size rounds across a level
    assert (pixels.detach() - decoder(latents).float()).abs().max() <= 0.5 + 1e-3
    (gradient,) = torch.autograd.grad(pixels.sum(), latents)
    assert gradient.abs().sum() > 0
