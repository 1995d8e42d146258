"""Equation 3 by every route against its reference."""

import pytest
import torch

from fastfid import SwapEngine
from fastfid.swap.log_determinants import swap_trace_change, swap_trace_change_ref
from tests.support.swap_sets import BACKENDS, make, moments


def test_trace_change_matches_its_reference():
    rng = torch.Generator().manual_seed(0)
    spectrum = torch.logspace(-3, 0, 20, dtype=torch.float64)
    w_r, w_a = (0.05 * torch.randn(3, m, 20, generator=rng, dtype=torch.float64) * spectrum.sqrt() for m in (4, 5))
    tau, omega = torch.logspace(-2, 1, 7, dtype=torch.float64), torch.linspace(0.1, 1, 7, dtype=torch.float64)
    expected = swap_trace_change_ref(w_r, w_a, spectrum, tau, omega)
    for backend in BACKENDS:
        torch.testing.assert_close(
            swap_trace_change(w_r, w_a, spectrum, tau, omega, backend), expected, rtol=1e-12, atol=1e-14
        )


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_that_are_not_part_of_the_reference_are_noticed(backend):
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference, backend=backend, dtype=torch.float64)
    engine.prepared.projected[int(removed[2, 0])] *= 50  # as if that row had been another one when the basis was made
    with pytest.raises(ValueError, match=r"in candidate \d+ .* not part of the reference"):
        engine.change(removed, added)


def test_only_what_failed_is_given_to_an_eigensolver(monkeypatch):
    """Of a batch, some devices compute eigenvalues one matrix at a time."""
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference, backend="torch", dtype=torch.float64)
    engine.prepared.projected[int(removed[2, 0])] *= 50
    held, sizes = [int(removed[2, 0]) in row for row in removed.tolist()], []
    eigvalsh = torch.linalg.eigvalsh
    monkeypatch.setattr(torch.linalg, "eigvalsh", lambda x: sizes.append(len(x)) or eigvalsh(x))
    with pytest.raises(ValueError, match=f"in candidate {held.index(True)} "):
        engine.change(removed, added)
    assert sizes == [sum(held)] and sum(held) < len(removed)
