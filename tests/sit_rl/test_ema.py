"""Averages against their definitions: weighted sums of every update's weights."""

import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sit_rl import ema
from sit_rl.ema import posthoc_coefficients, profile_product
from sit_rl.models.averages import EMA, PowerEMA, gamma_of
from sit_rl.models.loading import save_model
from sit_rl.models.sit import SiT, SiTConfig

SHAPE = SiTConfig(image_size=4, patch_size=2, channels=1, width=16, depth=1, heads=2, num_classes=2, learn_sigma=False)
UPDATES = 40


def walk(model, average, updates=UPDATES):
    """Move `model` at random; yields (t, its last bias) after every update of the average."""
    torch.manual_seed(0)
    for t in range(1, updates + 1):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.1 * torch.randn_like(p))
        average(t)
        yield t, model.final_layer.linear.bias.double().clone()


@pytest.mark.parametrize("sigma_rel", [0.05, 0.1, 0.25, 12**-0.5])
def test_width_is_that_of_the_profile(sigma_rel):
    """Standard deviation of τ/t under p(τ) ∝ τ^γ, by quadrature on 10⁶ midpoints."""
    gamma = gamma_of(sigma_rel)
    x = (np.arange(10**6) + 0.5) / 10**6
    p = x**gamma / (x**gamma).sum()
    assert np.sqrt((p * x**2).sum() - (p * x).sum() ** 2) == pytest.approx(sigma_rel, rel=1e-4)


@pytest.mark.parametrize("sigma_rel", [0.0, -1.0, 0.3])
def test_impossible_widths_are_refused(sigma_rel):
    with pytest.raises(ValueError, match=f"sigma_rel is {sigma_rel}"):
        gamma_of(sigma_rel)


def test_power_average_weighs_update_t_by_a_power_of_t():
    """θ̄(T) = Σ_t [t^(γ+1) − (t−1)^(γ+1)]/T^(γ+1) θ(t), the recursion written out; float32 sums of 40 terms."""
    model = SiT(SHAPE)
    average = PowerEMA(model, 0.1)
    values = torch.stack([bias for _, bias in walk(model, lambda t: average.update_after(model, t))])
    g = average.gamma + 1
    t = torch.arange(1, UPDATES + 1, dtype=torch.float64)
    weights = (t**g - (t - 1) ** g) / UPDATES**g
    torch.testing.assert_close(
        average.module.final_layer.linear.bias.double(), (weights[:, None] * values).sum(0), rtol=1e-5, atol=1e-6
    )


def test_profile_products_by_quadrature():
    x = (np.arange(10**6) + 0.5) / 10**5  # on [0, 10]
    for (ga, ta), (gb, tb) in [((3.0, 10.0), (3.0, 10.0)), ((2.0, 10.0), (6.94, 4.0)), ((16.97, 7.0), (0.0, 9.0))]:
        pa = np.where(x <= ta, (ga + 1) * (x / ta) ** ga / ta, 0)
        pb = np.where(x <= tb, (gb + 1) * (x / tb) ** gb / tb, 0)
        assert profile_product((ga, ta), (gb, tb)) == pytest.approx((pa * pb).sum() * 1e-5, rel=1e-3)


def test_a_snapshot_is_made_of_itself_alone():
    snapshots = [(gamma_of(s), t) for s in (0.05, 0.1) for t in (10.0, 20.0, 30.0)]
    weights = posthoc_coefficients(snapshots, snapshots[5])
    np.testing.assert_allclose(weights, np.eye(6)[5], atol=1e-6)


def test_average_made_after_the_run_is_near_the_one_kept_through_it(tmp_path, monkeypatch, capsys):
    model = SiT(SHAPE)
    kept = {s: PowerEMA(model, s) for s in (0.05, 0.1, 0.075)}
    (tmp_path / "ema").mkdir()
    for t, _ in walk(model, lambda t: [average.update_after(model, t) for average in kept.values()]):
        if t % 4 == 0:
            for s in (0.05, 0.1):
                path = tmp_path / "ema" / f"step-{t:06d}-power-{s:g}.safetensors"
                save_model(kept[s].module, path, sigma_rel=f"{s:g}", updates=str(t))
    out = tmp_path / "made.safetensors"
    monkeypatch.setattr(sys, "argv", ["ema", str(tmp_path), "--sigma-rel", "0.075", "--out", str(out)])
    ema.main()
    assert capsys.readouterr().out.strip() == str(out)
    made, wanted, other = load_file(out), kept[0.075].module.state_dict(), kept[0.1].module.state_dict()
    error = sum(float((made[k] - wanted[k]).square().sum()) for k in wanted)
    difference = sum(float((other[k] - wanted[k]).square().sum()) for k in wanted)
    assert error < 0.02 * difference


def test_without_snapshots_it_says_how_to_make_some(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ema", str(tmp_path), "--sigma-rel", "0.1", "--out", "x.safetensors"])
    with pytest.raises(SystemExit, match="2"):
        ema.main()
    assert "holds no snapshots: train with --ema-power 0.05 0.1 --ema-snapshot-every" in capsys.readouterr().err


def test_a_missing_folder_is_told_before_the_work(tmp_path, monkeypatch, capsys):
    out = tmp_path / "none" / "x.safetensors"
    monkeypatch.setattr(sys, "argv", ["ema", str(tmp_path), "--sigma-rel", "0.1", "--out", str(out)])
    with pytest.raises(SystemExit, match="2"):
        ema.main()
    assert f"the folder of --out {out} does not exist" in capsys.readouterr().err


def test_plain_average_is_the_weighted_mean():
    model = SiT(SHAPE)
    average = EMA(model, 0.9)
    start = average.module.final_layer.linear.bias.double().clone()
    values = [bias for _, bias in walk(model, lambda t: average.update(model), 5)]
    expected = 0.9**5 * start + sum(0.1 * 0.9 ** (4 - i) * value for i, value in enumerate(values))
    torch.testing.assert_close(average.module.final_layer.linear.bias.double(), expected, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="ema decay is 1"):
        EMA(model, 1.0)
