"""Back ends of attention agree with each other; impossible ones are refused by name."""

import pytest
import torch

from sit_rl import attention


@pytest.mark.parametrize("head_dim", [32, 72])
def test_sdpa_and_math_agree_with_float64(head_dim):
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 17, 3, head_dim) for _ in range(3))
    exact = attention.attention(q.double(), k.double(), v.double(), "math")
    for backend in ("sdpa", "math"):
        # float32 sums of 72 products and of 17 weights: well under 1e-5 for unit-variance inputs
        torch.testing.assert_close(attention.attention(q, k, v, backend).double(), exact, atol=1e-5, rtol=1e-5)


def test_choice_is_explained():
    assert attention.choose("auto") == ("flash" if attention.flash_available() else "sdpa")
    with pytest.raises(ValueError, match="choose one of auto, flash, sdpa, math"):
        attention.choose("fast")
    if not attention.flash_available():
        with pytest.raises(ValueError, match="pip install flash-attn"):
            attention.choose("flash")
