"""Models whose time runs from data to noise."""

import pytest
import torch

from sit_rl.models import convert
from sit_rl.models.dit import DiT
from sit_rl.models.loading import load_model
from sit_rl.models.time_direction import reverse_time
from tests.support.random_sits import SMALL, random_sit


@pytest.mark.parametrize("learn_sigma", [True, False])
def test_velocity_is_that_of_the_other_direction(learn_sigma):
    """v(x, t) = −v'(x, 1 − t), to float32 rounding of times, angles and sums."""
    model, reversed_ = (random_sit(type(SMALL)(**SMALL.to_dict() | {"learn_sigma": learn_sigma})) for _ in range(2))
    reverse_time(reversed_)
    x, t, y = torch.randn(9, 3, 8, 8), torch.linspace(0, 1, 9), torch.arange(9) % 5
    expected = -model(x, 1 - t, y)
    torch.testing.assert_close(reversed_(x, t, y), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(model(x, t, y), expected, rtol=0.1, atol=0.1)  # so that the directions differ
    reverse_time(reversed_)
    torch.testing.assert_close(reversed_(x, t, y), model(x, t, y), rtol=1e-4, atol=1e-4)


def test_a_file_is_converted(tmp_path, capsys):
    model, expected = random_sit(), random_sit()
    reverse_time(expected)
    torch.save({"ema": model.state_dict() | {"projectors.0.weight": torch.ones(2)}}, tmp_path / "repa.pt")
    convert.main(
        [str(tmp_path / "repa.pt"), str(tmp_path / "a.safetensors"), "--heads", "4", "--time", "data-to-noise"]
    )
    loaded = load_model(tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(value, loaded[key]) for key, value in expected.state_dict().items())
    torch.save(DiT(SMALL).state_dict(), tmp_path / "DiT-a.pt")
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "DiT-a.pt"), str(tmp_path / "b.safetensors"), "--time", "data-to-noise"])
    assert "--time data-to-noise is for a SiT; the source is a DiT" in capsys.readouterr().err
