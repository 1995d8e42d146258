"""Plans of published pipelines, without their files: sizes, compute and memory by --dry-run."""

import pytest

pytest.importorskip("diffusers", reason="pip install 'fastfid[prompts]'")
pytest.importorskip("peft", reason="pip install 'fastfid[prompts]'")

from pathlib import Path

from sit_rl.models.published_pipelines import PUBLISHED, published
from sit_rl.runs.gpu_plan import count_flops, count_parameters, memory_per_rank, trained_parameters
from sit_rl.runs.planned_model import PipelineShape, decoding
from sit_rl.train import main, parse

# Parameters of the transformers in 10⁹, by their makers: SD3 and SD3.5's model cards (2, 2.5 and 8.1 billion), Flux's
# (12 billion), Sana's paper (arXiv 2410.10629, table 2: 0.6 and 1.6 billion) and Lumina Image 2's (2.6 billion).
# They round; the largest departure is the 2.24 billion of SD3.5 medium.
BILLIONS = {
    "sd3-medium": 2.0, "sd3.5-medium": 2.5, "sd3.5-large": 8.1, "flux-dev": 12, "flux-schnell": 12, "sana-0.6b": 0.6,
    "sana-1.6b": 1.6, "lumina-image-2": 2.6,
}  # fmt: skip


def shape_of(name, size=None):
    family = published(Path(name))
    return PipelineShape(family, family.latent_shape(size))


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_size_has_its_makers_number_of_parameters(name):
    assert count_parameters(shape_of(name)) / 1e9 == pytest.approx(BILLIONS[name], rel=0.11)


def test_compute_follows_the_tokens():
    """Products with weights take 2 FLOPs a parameter and token; half the height and width is a quarter of them."""
    whole, half = (shape_of("sd3-medium", size) for size in (1024, 512))
    tokens = 64 * 64 + 77 + 256
    assert 2 * tokens * 1.0e9 < count_flops(whole) < 2 * tokens * 2.5e9
    assert 3 < count_flops(whole) / count_flops(half) < 6
    assert 3.9 < decoding(whole).flops / decoding(half).flops < 4.6


def test_a_plan_needs_no_files(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["--dry-run", "--model", "diffusers:sana-0.6b", "--prompts", "p.jsonl", "--real", "r"])
    out = capsys.readouterr().out
    for text in ("SanaTransformer2DModel of sana-0.6b, 1024×1024 images", "LoRA of rank 32", "guidance 4.5", "shift 3"):
        assert text in out
    assert "encoded once" in out and list(tmp_path.iterdir()) == []


def test_memory_of_frozen_weights_is_counted_once():
    config = parse(["--model", "diffusers:sana-0.6b", "--prompts", "p", "--real", "r"])
    shape = shape_of("sana-0.6b")
    memory, trained = memory_per_rank(config, shape, 1), trained_parameters(config, shape)
    assert memory["base model"] == 2 * count_parameters(shape) and memory["weights in bf16"] == 0
    assert memory["weights, gradients, moments, averages"] == 4 * trained * 5
    assert 1e6 < trained < 0.1 * count_parameters(shape)
    whole = memory_per_rank(config.changed(lora=0), shape, 1)
    assert whole["weights, gradients, moments, averages"] == 4 * count_parameters(shape) * 5


def test_a_name_that_is_not_published_is_one_sentence(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--dry-run", "--model", "diffusers:sd9", "--prompts", "p", "--real", "r"])
    told = " ".join(capsys.readouterr().err.split())
    assert "--model diffusers:sd9 does not exist" in told and "one of the names sd3-medium" in told
