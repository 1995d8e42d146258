"""Reports add up over the chunks and calls of an engine."""

import pytest
import torch

from fastfid import SwapEngine
from fastfid.backend import Choice
from fastfid.swap import nodes
from fastfid.swap.report import Report
from tests.support.swap_sets import make, moments


def test_reports_add_counts_and_seconds_and_keep_what_a_later_one_lacks():
    first = Report(Choice("cpp", "why"), recomputed=2, clipped=1, seconds={"project": 1.0})
    both = first.then(Report(recomputed=3, seconds={"project": 0.5, "logdet": 2.0}))
    assert both.choice == first.choice and both.nodes is None
    assert (both.recomputed, both.clipped) == (5, 1) and both.seconds == {"project": 1.5, "logdet": 2.0}
    assert first.seconds == {"project": 1.0}  # reports are values


def test_a_call_that_fails_leaves_the_report():
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference)
    engine.change(removed, added)
    before = engine.report()
    added[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        engine.change(removed[:, :2], added)
    assert engine.report() == before


def test_a_call_without_candidates_keeps_the_last_nodes():
    real, reference, removed, added = make("constant in reference")
    engine = SwapEngine(moments(real), reference)
    engine.change(removed, added)
    before = engine.report()
    engine.change(removed[:0], added[:0])
    after = engine.report()
    assert before["nodes"] > 0 and before["shift"] > 0
    assert {**after, "seconds": None} == {**before, "seconds": None, "recomputed": 0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_plan_is_made_once_for_each_set_of_nodes(dtype, monkeypatch):
    made, plan = [], nodes.weight_plan

    def counted(*arguments):
        made.append(arguments)
        return plan(*arguments)

    monkeypatch.setattr(nodes, "weight_plan", counted)
    real, reference, removed, added = make()
    engine = SwapEngine(moments(real), reference, dtype=dtype)
    for _ in range(2):
        engine.change(removed, added)
    engine.change_each(removed, added)
    assert len(made) == 2  # for subsets and for single images
