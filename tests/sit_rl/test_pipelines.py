"""Diffusers' pipelines as generators: the same images as the pipeline's own, and prompts that are encoded once."""

import json
import shutil

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers", reason="pip install 'fastfid[prompts]'")
pytest.importorskip("transformers", reason="pip install 'fastfid[prompts]'")
pytest.importorskip("peft", reason="pip install 'fastfid[prompts]'")

from sit_rl.files.prompts import read_prompts
from sit_rl.models import prompt_embeddings
from sit_rl.models.lora import add_lora
from sit_rl.models.open_model import load_weights, save_weights
from sit_rl.models.pipeline_families import family_of
from sit_rl.models.pipeline_model import load_pipeline
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import sample
from sit_rl.sampling.sampler_config import SamplerConfig
from tests.support import tiny_pipelines
from tests.support.tiny_pipelines import PROMPTS, SIZE, save_pipeline, write_prompts

STEPS = 4
KINDS = ("sd3", "flux", "sana", "lumina2")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTFID_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of each kind of pipeline, made when it is first asked for."""
    place, made = tmp_path_factory.mktemp("pipelines"), {}

    def folder(kind):
        if kind not in made:
            made[kind] = save_pipeline(getattr(tiny_pipelines, kind), place / kind)
        return made[kind]

    return folder


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    return read_prompts(write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.jsonl"))


def own_images(folder, latents, guidance):
    """Latents and images of two prompts by the pipeline itself, with an Euler scheduler."""
    from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    more = {}
    if type(pipe).__name__ == "SanaPipeline":  # its own solver is of second order
        pipe.scheduler, more = FlowMatchEulerDiscreteScheduler(shift=3.0), {"use_resolution_binning": False}
        pipe.check_inputs = lambda *_, **__: None  # it wants multiples of 32 pixels
    if type(pipe).__name__ == "FluxPipeline":
        n, c, h, w = latents.shape
        latents = pipe._pack_latents(latents, n, c, h, w)
    arguments = {
        "prompt": list(PROMPTS[1:3]), "height": SIZE, "width": SIZE, "guidance_scale": guidance,
        "sigmas": np.linspace(1, 1 / STEPS, STEPS), "num_inference_steps": STEPS, **more,
    }  # fmt: skip
    return pipe(**arguments, latents=latents, output_type="np").images


@pytest.mark.parametrize("kind", KINDS)
def test_a_generator_makes_the_images_of_its_pipeline(folders, prompts, kind):
    """Guidance, shift, prompts, decoding and the direction of time are the pipeline's."""
    folder = folders(kind)
    model = load_pipeline(folder, prompts, image_size=SIZE)
    own = model.own_sampling
    sampler = SamplerConfig("ode", "euler", STEPS, shift=own.shift, guidance=own.guidance)
    noise = torch.randn(2, *model.sample_shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        made = model.decoder(sample(bind(model, torch.tensor([1, 2]), sampler), noise, sampler))
    assert made.shape == (2, 3, SIZE, SIZE) and made.dtype == torch.uint8
    guidance = model.family.defaults()["guidance_scale"]
    assert own.shift != 1 and (own.guidance == guidance or kind == "flux")
    theirs = (own_images(folder, noise, guidance) * 255).round()
    ours = made.permute(0, 2, 3, 1).numpy()
    assert np.abs(theirs - ours).max() <= 1 and np.abs(theirs - ours).mean() < 0.01  # a rounding to the other side
    assert ours.std() > 5 and np.abs(ours[0].astype(float) - ours[1]).mean() > 1  # not blank, and prompts matter


def test_prompts_are_encoded_once(folders, prompts, monkeypatch, capsys):
    """Rows come from the disk; a damaged file is made again; another prompt is encoded."""
    folder, family = folders("sd3"), family_of(folders("sd3"))
    encoded, encode = [], prompt_embeddings.encode

    def counted(family, texts, *more):
        encoded.append(tuple(texts))
        return encode(family, texts, *more)

    transformer = load_pipeline(folder, prompts).transformer
    monkeypatch.setattr(prompt_embeddings, "encode", counted)
    arguments = (transformer, torch.device("cpu"), torch.float32)
    first, second = (prompt_embeddings.embeddings(family, PROMPTS, "blurred", *arguments) for _ in range(2))
    assert encoded[-1] == PROMPTS and encoded.count(PROMPTS) == 1
    for name, rows in first.rows.items():
        assert torch.equal(rows, second.rows[name]) and len(rows) == len(PROMPTS) + 1
        assert len(rows.flatten(1).unique(dim=0)) == len(rows)  # each prompt has its own
    key = prompt_embeddings._key(family, PROMPTS, "blurred", torch.float32)
    path = prompt_embeddings.cache_folder() / "prompts" / f"{key}.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    again = prompt_embeddings.embeddings(family, PROMPTS, "blurred", *arguments)
    assert encoded.count(PROMPTS) == 2
    torch.testing.assert_close(again.rows, first.rows)  # encoders round differently from time to time
    prompt_embeddings.embeddings(family, PROMPTS[:1], "", *arguments)
    other = prompt_embeddings._key(family, PROMPTS[:1], "", torch.float32)
    path.write_bytes(path.with_stem(other).read_bytes())  # sound, and of other prompts
    assert prompt_embeddings._read(path.with_stem(other)) is not None and prompt_embeddings._read(path) is None
    monkeypatch.setenv("FASTFID_CACHE", "/dev/null/nowhere")
    without = prompt_embeddings.embeddings(family, PROMPTS, "blurred", *arguments)
    torch.testing.assert_close(without.rows, first.rows)
    assert "are not kept" in capsys.readouterr().out


def test_lora_terms_are_read_by_diffusers_and_by_the_trainer(folders, prompts, tmp_path):
    from diffusers import DiffusionPipeline

    folder = folders("sd3")
    model = load_pipeline(folder, prompts)
    x, t, y = torch.randn(2, 4, 8, 8), torch.tensor([0.2, 0.7]), torch.tensor([0, 3])
    add_lora(model, 2, seed=0)
    torch.manual_seed(0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.normal_()
        expected = model(x, t, y)
    save_weights(model, tmp_path / "lora.safetensors", step="3")
    other = load_pipeline(folder, prompts)
    with torch.no_grad():
        before = other(x, t, y)
        load_weights(other, tmp_path / "lora.safetensors")
        assert (other(x, t, y) - expected).abs().max() < 1e-4 < (before - expected).abs().max()
        pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True)
        pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
        other.transformer = pipe.transformer
        assert (other(x, t, y) - expected).abs().max() < 1e-4
    with pytest.raises(ValueError, match="holds other weights than those of .* is missing"):
        load_weights(load_pipeline(folders("sana"), prompts), tmp_path / "lora.safetensors")


def test_weights_of_the_transformer_go_and_come(folders, prompts, tmp_path):
    model, other = (load_pipeline(folders("sd3"), prompts) for _ in range(2))
    with torch.no_grad():
        for p in model.transformer.parameters():
            p.mul_(2)
    save_weights(model, tmp_path / "all.safetensors")
    load_weights(other, tmp_path / "all.safetensors")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_another_folder_is_one_sentence(folders, prompts, tmp_path):
    with pytest.raises(FileNotFoundError, match="--model diffusers:.*nowhere does not exist; pass a local folder"):
        load_pipeline(tmp_path / "nowhere", prompts)
    with pytest.raises(FileNotFoundError, match="has no model_index.json"):
        load_pipeline(tmp_path, prompts)
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    with pytest.raises(ValueError, match="is a StableDiffusionXLPipeline, whose transformer is not known here"):
        load_pipeline(tmp_path, prompts)
    (tmp_path / "model_index.json").write_text("{}")
    with pytest.raises(ValueError, match="has a model_index.json without _class_name; choose a"):
        load_pipeline(tmp_path, prompts)
    with pytest.raises(ValueError, match="--image-size is 18; images of .* have a multiple of 4 pixels"):
        load_pipeline(folders("sd3"), prompts, image_size=18)
    with pytest.raises(ValueError, match="--image-size is 64; the positions of .* reach 32 pixels"):
        load_pipeline(folders("sd3"), prompts, image_size=64)
    cut = tmp_path / "cut"
    shutil.copytree(folders("sd3"), cut)
    weights = cut / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="its transformer cannot be loaded .*it is incomplete.*; download it again"):
        load_pipeline(cut, prompts)
    shutil.copy(folders("sd3") / "transformer" / weights.name, weights)
    shutil.rmtree(cut / "text_encoder")
    with pytest.raises(ValueError, match="its text encoders cannot be loaded"):
        load_pipeline(cut, read_prompts(write_prompts(tmp_path / "new.jsonl", ["never encoded"], None)))
