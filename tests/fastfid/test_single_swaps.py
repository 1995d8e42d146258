"""Single images and leave-one-out against sets recomputed from scratch."""

import numpy as np
import pytest

from fastfid import SwapEngine
from tests.support import oracles
from tests.support.swap_sets import CASES, EXACT, allowance, make, moments


@pytest.mark.parametrize("case", ["plain", "N < d", "constant in reference"])
def test_single_images_and_leave_one_out(case):
    real, reference, _, added = make(**{**CASES[case], "batch": 3, "m_a": 2})
    removed = np.arange(6).reshape(3, 2)
    engine = SwapEngine(moments(real), reference, **EXACT)
    each = engine.change_each(removed, added).numpy()
    expected = oracles.changes(real, reference, removed.reshape(-1, 1), added.reshape(6, 1, -1)).reshape(3, 2)
    np.testing.assert_allclose(each, expected, rtol=1e-9, atol=allowance(engine, 1, 1))
    left_out = engine.leave_one_out().numpy()
    nothing = np.empty((len(reference), 0, reference.shape[1]))
    expected = oracles.changes(real, reference, np.arange(len(reference))[:, None], nothing)
    np.testing.assert_allclose(left_out, expected, rtol=1e-9, atol=allowance(engine, 1, 0))
