"""What a dry run counts, against formulas: FLOPs, memory, hours."""

import weakref
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sit_rl.config import resolve
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.runs.forecast import step_evaluations
from sit_rl.runs.gpu_plan import (
    activation_bytes,
    count_flops,
    dry_run,
    memory_per_rank,
    planned_gpu,
)
from sit_rl.runs.planned_model import DECODER_FLOPS, DECODING_BYTES
from sit_rl.train import main

SMALL = SiTConfig(image_size=8, patch_size=2, channels=4, width=24, depth=3, heads=2, num_classes=5, learn_sigma=True)


XL = resolve(PRESETS["sit-xl-imagenet256"][1])


def by_hand(c):
    """Products of a SiT's forward pass, two FLOPs a multiply-add."""
    tokens, width, patch = (c.image_size // c.patch_size) ** 2, c.width, c.patch_size**2
    block = tokens * (4 + 8) * width**2 + 2 * tokens**2 * width + 6 * width**2
    embeddings = tokens * patch * c.channels * width + 256 * width + width**2
    final = tokens * width * patch * c.channels * (2 if c.learn_sigma else 1) + 2 * width**2
    return 2 * (c.depth * block + embeddings + final)


@pytest.mark.parametrize("shape", [SMALL, SiTConfig.named("XL/2"), SiTConfig.named("B/4")], ids=lambda c: c.name)
def test_counted_flops_are_the_formulas(shape):
    assert count_flops(shape) == by_hand(shape)


def test_xl_has_the_published_compute_and_size():
    """118.64 GFLOPs, counting a multiply-add once (arXiv 2212.09748, table 4), modulations aside; 675M parameters."""
    assert count_flops(SiTConfig.named("XL/2")) / 2 == pytest.approx(118.64e9, rel=2e-3)
    text = dry_run(XL)
    assert "675.1M parameters" in text and "237 GFLOP" in text


def test_backward_costs_twice_the_forward():
    """Gradients of weights and of inputs; the input of the first layers needs none, here under 2%."""
    assert count_flops(SMALL, backward=True) / count_flops(SMALL) == pytest.approx(3, rel=0.03)


def test_activations_are_what_a_real_pass_keeps():
    torch.manual_seed(0)
    model = SiT(SMALL)
    weights = {p.data_ptr() for p in model.parameters()}
    kept = {}

    def keep(x):
        if x.data_ptr() not in weights:
            kept[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    n = 3
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(torch.randn(n, *SMALL.image_shape), torch.rand(n), torch.arange(n))
    float32 = XL.changed(precision="float32")
    # the attention on a CPU keeps a few numbers that its plan for other devices does not, and the other way round
    assert n * activation_bytes(float32, SMALL) == pytest.approx(sum(kept.values()), rel=0.25)
    assert activation_bytes(XL, SMALL) < 0.6 * activation_bytes(float32, SMALL)
    recomputed = float32.changed(activation_checkpointing=True)
    assert activation_bytes(recomputed, SMALL) < 0.4 * activation_bytes(float32, SMALL)


def test_memory_of_shards_and_copies():
    shape = SiTConfig.named("XL/2")
    weights = 4 * 675_129_632
    one, eight = memory_per_rank(XL, shape, 1), memory_per_rank(XL, shape, 8)
    assert one["weights, gradients, moments, averages"] == 5 * weights and one["copy for sampling"] == 0
    assert eight["weights, gradients, moments, averages"] == 5 * weights / 8 and eight["copy for sampling"] == weights
    whole = memory_per_rank(XL.changed(parallel="ddp"), shape, 8)
    assert whole["weights, gradients, moments, averages"] == 5 * weights


def test_dry_run_needs_no_file_and_marks_what_is_computed(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--preset", "sit-xl-imagenet256", "--dry-run", "--checkpoint", "none.pt"])
    out = capsys.readouterr().out
    for text in ("1600 images", "GiB a rank (computed)", "FLOP (counted)", "8 × A100", "8 × H100", "unmeasured"):
        assert text in out
    assert list(tmp_path.iterdir()) == []


def test_hours_are_flops_over_the_peak_used():
    config = resolve(PRESETS["fashion"][1])
    text = dry_run(config)
    total = sum(float(part.split()[1]) for part in text.split("compute")[1].split("FLOP")[0].split(","))
    seconds, unit = text.split("1 × H100")[1].split()[:2]
    assert unit == "seconds" and float(seconds) == pytest.approx(total / (67e12 * 0.4), rel=0.01)
    assert "MiB a rank" in text  # nothing of a small model is 0.00 GiB


@pytest.mark.parametrize(
    "word, told",
    [
        ("8xV100", "the peak of 'V100' is not known here; choose A100, H100, .* TFLOP/s: 8xV100=PEAK"),
        ("H100", "'H100' is not COUNTxNAME"),
        ("0xH100", "is not COUNTxNAME"),
        ("8xV100=1.2.3", "is not COUNTxNAME"),
    ],
)
def test_unknown_gpus_are_told_what_is_known(word, told):
    with pytest.raises(ValueError, match=f"--gpus .*{told}"):
        dry_run(XL.changed(gpus=("8xH100", word)))


def test_hours_on_given_gpus():
    """A peak of one's own counts as the known one of the same number; two GPUs halve the hours."""
    one, two, own = (planned_gpu(text, "bf16") for text in ("1xL40S", "2xL40S", "1xmine=362"))
    assert one == (1, "L40S", 362e12) and two[0] == 2 and own == (1, "mine", 362e12)
    text = dry_run(XL.changed(gpus=("4xL40S", "8xL40S")))
    hours = [float(text.split(f"{n} × L40S")[1].split()[0]) for n in (4, 8)]
    assert hours[0] == pytest.approx(2 * hours[1], rel=0.01)  # of three printed digits
    assert "4 GPUs" in text and "8 GPUs" in text and "dopri5 taken at 50 evaluations" in text


def test_memory_has_what_stands_beside_the_generator():
    latent = SiTConfig.named("XL/2")
    memory = memory_per_rank(XL, latent, 8)
    assert memory["weights in bf16"] == 2 * 675_129_632
    assert memory["autoencoder and Inception"] == pytest.approx(4 * 107.6e6)
    assert memory_per_rank(XL.changed(precision="float32"), latent, 8)["weights in bf16"] == 0
    assert memory_per_rank(XL.changed(activation_checkpointing=True), latent, 8)["weights in bf16"] == 0
    assert memory_per_rank(XL, replace(SMALL, channels=3), 1)["autoencoder and Inception"] == 0


def test_decoding_counts_where_it_needs_more_than_an_update():
    """Beside recomputed activations of one image at a time it does."""
    latent, name = SiTConfig.named("XL/2"), "activations of an update or of decoding"
    small = XL.changed(activation_checkpointing=True, micro_batch=1)
    assert memory_per_rank(XL, latent, 1)[name] == 16 * activation_bytes(XL, latent)
    assert memory_per_rank(small, latent, 1)[name] == 8 * DECODING_BYTES > activation_bytes(small, latent)
    assert memory_per_rank(small, replace(latent, image_size=64), 1)[name] == 32 * DECODING_BYTES
    pixels = replace(SMALL, channels=3)
    assert memory_per_rank(small, pixels, 1)[name] == activation_bytes(small, pixels)


def test_a_decoding_is_what_the_published_decoder_needs():
    """FLOP, and the most bytes that live at once, of its real layers on tensors without memory."""
    diffusers = pytest.importorskip("diffusers")
    shape = {
        "block_out_channels": (128, 256, 512, 512), "layers_per_block": 2, "latent_channels": 4,
        "down_block_types": ("DownEncoderBlock2D",) * 4, "up_block_types": ("UpDecoderBlock2D",) * 4,
    }  # fmt: skip
    with torch.device("meta"):
        decoder, latents = diffusers.AutoencoderKL(**shape).requires_grad_(False), torch.empty(1, 4, 32, 32)
    with torch.utils.flop_counter.FlopCounterMode(display=False) as counter:
        decoder.decode(latents)
    assert counter.get_total_flops() == pytest.approx(DECODER_FLOPS, rel=0.01)
    with LiveBytes() as live:
        decoder.decode(latents)
    assert live.most == pytest.approx(DECODING_BYTES, rel=0.02)  # the first image has a few small maps beside


class LiveBytes(TorchDispatchMode):
    """`most` bytes of results that were alive at once, a storage that several share counted once."""

    def __init__(self):
        super().__init__()
        self.sizes, self.most = {}, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Count a result's storage until it is freed."""
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor):
            storage = out.untyped_storage()
            if storage._cdata not in self.sizes:
                self.sizes[storage._cdata] = storage.nbytes()
                weakref.finalize(storage, self.sizes.pop, storage._cdata)
                self.most = max(self.most, sum(self.sizes.values()))
        return out


def test_recomputed_activations_cost_another_forward_pass():
    plain, again = (
        step_evaluations(resolve(PRESETS[name][1].changed(activation_checkpointing=on)), 1)["update"]
        for name, on in (("sit-xl-imagenet256", False), ("sit-xl-imagenet256", True))
    )
    assert again / plain == pytest.approx(4 / 3)
