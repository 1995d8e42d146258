"""Classifier-free guidance: the published combination, on the channels and in the interval that were asked for."""

import pytest
import torch

from sit_rl.components.checks import check_predictions
from sit_rl.generation.recipe import Recipe, check_sampler, choose_labels, parse_sampler
from sit_rl.models.conditions import Conditions
from sit_rl.models.dit import DiT
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.presets import PRESETS
from sit_rl.sampling.guidance import bind
from sit_rl.sampling.ode_and_sde_steps import sample, sample_path
from sit_rl.sampling.sampler_config import SamplerConfig

CONFIG = SiTConfig(image_size=4, patch_size=2, channels=4, width=16, depth=1, heads=2, num_classes=3, learn_sigma=True)
LABELS = torch.tensor([0, 2, 1])


def random_model(kind=SiT):
    torch.manual_seed(0)
    model = kind(CONFIG)
    for p in model.parameters():
        if p.requires_grad:
            p.data = 0.3 * torch.randn_like(p)
    return model.requires_grad_(False)


def both(model, x, t):
    times = torch.full((len(x),), t)
    return model(x, times, LABELS), model(x, times, torch.full_like(LABELS, 3))


# One pass over a doubled batch may round otherwise than two passes: a few units of float32's 6e-8 on numbers up to 10.
CLOSE = dict(rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [0, 3])
def test_velocity_is_guided_on_the_channels_asked_for(channels):
    model, x = random_model(), torch.randn(3, 4, 4, 4)
    labelled, null = both(model, x, 0.3)
    sampler = SamplerConfig(guidance=4.0, guidance_channels=channels)
    got = bind(model, LABELS, sampler)(x, 0.3)
    guided = null + 4.0 * (labelled - null)
    torch.testing.assert_close(got[:, :3], guided[:, :3], **CLOSE)
    torch.testing.assert_close(got[:, 3], (guided if channels == 0 else labelled)[:, 3], **CLOSE)
    assert not torch.allclose(guided[:, 3], labelled[:, 3], **CLOSE)  # so that the two cases differ


def official_guidance(model, x, t, y, scale):
    """`forward_with_cfg` of SiT and DiT: three channels are guided, the rest is each half's own."""
    half = x[: len(x) // 2]
    out = model(torch.cat([half, half]), t, y)
    eps, rest = out[:, :3], out[:, 3:]
    cond, uncond = eps.chunk(2)
    guided = uncond + scale * (cond - uncond)
    return torch.cat([torch.cat([guided, guided]), rest], dim=1)


@pytest.mark.parametrize("name", ["sit-ode", "sit-sde", "dit-ddpm"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_official_samplers_guide_as_their_code_does(name, channels):
    sampler = parse_sampler(name, guidance=4.0)
    torch.manual_seed(0)
    model = (DiT if name == "dit-ddpm" else SiT)(SiTConfig(**{**CONFIG.to_dict(), "channels": channels}))
    for p in model.parameters():
        p.data = 0.3 * torch.randn_like(p)
    x, t = torch.randn(3, channels, 4, 4), 400.0 if name == "dit-ddpm" else 0.3
    labels = torch.cat([LABELS, torch.full_like(LABELS, 3)])
    expected = official_guidance(model, torch.cat([x, x]), torch.full((6,), t), labels, 4.0)[:3]
    got = bind(model, LABELS, sampler)(x, t)
    torch.testing.assert_close(got[:, :channels], expected[:, :channels], **CLOSE)
    assert str(sampler).endswith("guidance 4 on 3 channels") and "guidance" not in str(parse_sampler(name))


def test_a_predicted_variance_is_not_guided():
    model, x = random_model(DiT), torch.randn(3, 4, 4, 4)
    labelled, null = both(model, x, 400.0)
    got = bind(model, LABELS, SamplerConfig("discrete", "ddim", guidance=1.5))(x, 400.0)
    torch.testing.assert_close(got[:, :4], (null + 1.5 * (labelled - null))[:, :4], **CLOSE)
    torch.testing.assert_close(got[:, 4:], labelled[:, 4:], **CLOSE)


def test_interval_limits_guidance_and_its_cost():
    model, x = random_model(), torch.randn(3, 4, 4, 4)
    passes = []
    model.register_forward_pre_hook(lambda _, inputs: passes.append(len(inputs[0])))
    sampler = SamplerConfig("ode", "euler", 10, guidance=2.0, guidance_from=0.25, guidance_until=0.75)
    sample(bind(model, LABELS, sampler), x, sampler)
    assert passes == [3, 3, 3, 6, 6, 6, 6, 6, 3, 3]  # at t = 0.3 … 0.7
    assert sampler.evaluations() == 15 == sum(passes) / 3
    discrete = SamplerConfig("discrete", "ddim", 10, guidance=2.0, guidance_from=0.25, guidance_until=0.75)
    assert [discrete.guides(t) for t in (999.0, 700.0, 300.0, 0.0)] == [False, True, True, False]


def test_guidance_of_one_is_the_label_alone():
    model, x = random_model(), torch.randn(3, 4, 4, 4)
    plain = bind(model, LABELS)(x, 0.5)
    assert torch.equal(bind(model, LABELS, SamplerConfig(guidance=1.0))(x, 0.5), plain)
    assert SamplerConfig("sde", "euler", 250).evaluations() == 250
    assert SamplerConfig("sde", "euler", 250, guidance=1.5).evaluations() == 500


def test_guided_paths_have_reproducible_log_probabilities():
    model, x = random_model(), torch.randn(3, 4, 4, 4)
    sampler = SamplerConfig("sde", "euler", 5, guidance=1.5)
    draws = torch.randn(4, 3, 4, 4, 4)
    first, second = (sample_path(bind(model, LABELS, sampler), x, sampler, lambda i: draws[i]) for _ in range(2))
    assert torch.equal(torch.stack(first.log_prob), torch.stack(second.log_prob))


def test_wrapped_models_are_seen_through():
    class Wrapper(torch.nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *inputs):
            return self.module(*inputs)

    model, x, sampler = random_model(), torch.randn(3, 4, 4, 4), SamplerConfig(guidance=2.0)
    assert torch.equal(bind(Wrapper(model), LABELS, sampler)(x, 0.5), bind(model, LABELS, sampler)(x, 0.5))


def test_samplers_refuse_models_that_predict_something_else():
    with pytest.raises(ValueError, match="this one predicts noise: choose 'discrete'"):
        bind(random_model(DiT), LABELS, SamplerConfig())
    with pytest.raises(ValueError, match="this one predicts velocity: choose 'ode' or 'sde'"):
        bind(random_model(), LABELS, SamplerConfig("discrete", "ddpm"))


def test_a_model_without_a_null_class_is_not_guided_and_every_class_is_sampled():
    """Its last class stood for the null class, and was never drawn."""
    config = SiTConfig(**{**CONFIG.to_dict(), "null_class": False})
    model, x = SiT(config), torch.randn(3, 4, 4, 4)
    bind(model, LABELS, SamplerConfig())(x, 0.3)  # label 2 is in the table
    for check in (lambda s: bind(model, LABELS, s), lambda s: check_sampler(model, s)):
        with pytest.raises(ValueError, match="guidance is 2, and the model has no null class"):
            check(SamplerConfig(guidance=2.0))
    assert choose_labels(Recipe(images=6), Conditions.numbered(config.num_classes)).tolist() == [0, 1, 2, 0, 1, 2]
    asked = PRESETS["fashion"][1].changed(evaluate_sde=SamplerConfig("sde", "euler", 5, guidance=1.5))
    with pytest.raises(ValueError, match="--evaluate-sde: guidance is 1.5, and the model has no null class"):
        check_predictions(asked, model)


def test_an_unconditional_model_has_one_class():
    model = SiT(SiTConfig(**{**CONFIG.to_dict(), "num_classes": 1, "null_class": False}))
    assert model.y_embedder.embedding_table.weight.shape[0] == 1
    assert choose_labels(Recipe(images=3), model.conditions).tolist() == [0, 0, 0]
