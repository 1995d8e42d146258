"""The turns of the two eigensolvers: which goes on, and what a resumed run does."""

import json

import pytest

from sit_rl.reward.solver_trial import TURNS, SolverTrial

SECONDS = {"device": 3.0, "host": 1.0}


class Loop:
    """A run's preparations, in a time that only they take; `late` of them take longer, as beside an evaluation."""

    def __init__(self, kept=None, seconds=SECONDS, late=()):
        self.now, self.seconds, self.late = 0.0, seconds, late
        self.trial, self.places, self.said = SolverTrial(kept, lambda: self.now), [], []

    def renew(self, i):
        """Preparation i begins."""
        self.said += [told for told in [self.trial.decide()] if told]
        self.places.append(self.trial.begin())
        self.now += self.seconds[self.places[-1]] + 9 * (i in self.late)

    def needed(self):
        """A score needs it."""
        self.trial.end()
        self.now += 100  # what follows does not count
        self.trial.end()

    def run(self, first, last):
        for i in range(first, last):
            self.renew(i)
            self.needed()
        return self


@pytest.mark.parametrize("faster, slower", [("device", "host"), ("host", "device")])
def test_the_faster_one_goes_on(faster, slower):
    """Its shortest turn counts: a step that evaluates does not decide.  The first turns load libraries."""
    run = Loop(seconds={faster: 1.0, slower: 3.0}, late=(0, 1, 2, 3, 5, 6)).run(0, 12)
    assert run.places == [*["device", "host"] * TURNS, *[faster] * 4]
    (told,) = run.said
    assert f"--eigensolver {faster} " in told and "take 1 s, and 3 s" in told


@pytest.mark.parametrize("stopped", [0, 3, 7, 8, 9])
@pytest.mark.parametrize("scored", [False, True])
def test_a_resumed_run_decomposes_where_the_unbroken_one_does(stopped, scored):
    """Its first preparation is the present one of the checkpoint, which a score has needed or not yet."""
    whole, first = Loop().run(0, 14), Loop().run(0, stopped)
    first.renew(stopped)
    if scored:
        first.needed()
    kept = json.loads(json.dumps(first.trial.state()))
    resumed = Loop(kept)
    resumed.renew(stopped)
    resumed.needed()
    resumed.run(stopped + 1, 14)
    assert first.places == whole.places[: stopped + 1] and resumed.places == whole.places[stopped:]
    assert resumed.trial.chosen == "host"


def test_turns_go_on_until_each_solver_was_measured():
    """A run that is resumed after every preparation measures none of them."""
    kept = None
    for i in range(10):
        run = Loop(kept)
        run.trial._again = False  # go on to the next one
        run.run(i, i + 1)
        assert not run.said
        kept = run.trial.state()
    run = Loop(kept).run(10, 16)
    assert run.said and run.places[-1] == "host"
