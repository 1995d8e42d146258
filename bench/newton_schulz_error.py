"""Error of the FD change of swapped sets by Newton–Schulz matrix roots, by precision: is it small enough for a reward?

    python bench/newton_schulz_error.py [--candidates 16] [--out bench/results/newton_schulz_error.csv]

Every candidate replaces 50 rows of a reference set of N samples and is scored against real moments.  Features are
normal in a random basis, with variances i^-power (Inception's fall about as 1/i).  For every candidate the script
computes the exact trace T = tr √M (float64 eigenvalues) and the iteration's T̃ after 6…30 steps.  `base` is the
reference set itself.

All errors are root mean squares over the candidates, in units of the standard deviation of their exact FD changes:
  error             −2 (T̃ − T): the iteration's trace instead of the exact one
  error_subtracted  −2 ((T̃ − T̃_base) − (T − T_base)): the error on the base set is subtracted
  noise             standard deviation of `error`: no constant that is subtracted from all candidates can remove it
`corrected` is 1 if ½ tr(Z (M − Y²)) was added, which takes one product in float32
("Correction" in fastfid/linalg/iterative_roots.py).
On every device, the iteration rounds its operands to the mantissa of the precision and sums products in float32.
"""

import argparse
import csv
import itertools
from pathlib import Path

import torch

from fastfid import FeatureMoments
from fastfid.linalg.factors import factor_by_eigh
from fastfid.linalg.iterative_roots import (
    corrected_trace,
    iterates,
    newton_schulz,
    normalised,
    polar_express,
    trace_of,
)
from fastfid.linalg.symmetric import NOISE, symmetric

SWAPPED = 50
SETTINGS = [(256, 1000, 1.0), (256, 2500, 1.0), (256, 2500, 2.0), (512, 2500, 1.0)]  # d, N, power
PRECISIONS = ("float32", "tf32", "bfloat16")
POLYNOMIALS = {"newton_schulz": newton_schulz, "polar_express": polar_express}
ITERATIONS = range(6, 31)
GOOD_ENOUGH = 0.05  # of the spread; gives a correlation of 0.999 with the exact reward
KEY = ["d", "n", "power", "precision", "method", "corrected"]
FIELDS = [*KEY, "iterations", "error", "error_subtracted", "noise", "residual"]


def samples(n: int, basis: torch.Tensor, power: float, shift: float, seed: int) -> torch.Tensor:
    """n normal rows with variances i^-power·(1 + shift cos i)² in `basis` [d, d] and the mean 0.02·shift."""
    generator = torch.Generator().manual_seed(seed)
    index = torch.arange(1, len(basis) + 1, dtype=torch.float64)
    scale = index ** (-power / 2) * (1 + shift * torch.cos(index))
    noise = torch.randn(n, len(basis), generator=generator, dtype=torch.float64)
    return (noise * scale) @ basis.T + 0.02 * shift


def changed_sets(reference: torch.Tensor, added: torch.Tensor, seed: int) -> list[FeatureMoments]:
    """Moments of the reference set [N, d] and of each candidate: added [B, 50, d] replaces 50 random rows."""
    generator = torch.Generator().manual_seed(seed)
    sets = [FeatureMoments.from_features(reference)]
    for rows in added:
        kept = torch.randperm(len(reference), generator=generator)[SWAPPED:]
        sets.append(FeatureMoments.from_features(torch.cat([reference[kept], rows])))
    return sets


def exact_changes(real: FeatureMoments, sets: list[FeatureMoments], roots: torch.Tensor) -> torch.Tensor:
    """FD of each candidate minus that of the base set, sets[0]. `roots` [1 + B] holds the traces of the roots."""
    fds = torch.stack([(real.mean - s.mean).square().sum() + torch.trace(s.cov) for s in sets]) - 2 * roots
    return fds[1:] - fds[0]


def rows_of(d: int, n: int, power: float, candidates: int):
    """One dict of FIELDS for every method, precision and number of iterations."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    real = FeatureMoments.from_features(samples(4 * n, basis, power, 0.0, seed=1))
    reference = samples(n, basis, power, 0.3, seed=2)
    added = samples(candidates * SWAPPED, basis, power, 0.3, seed=3).reshape(candidates, SWAPPED, d)
    sets = changed_sets(reference, added, seed=4)
    factor = factor_by_eigh(symmetric(real.cov), NOISE).root
    under_root = symmetric(factor @ torch.stack([s.cov for s in sets]) @ factor.T)
    exact = torch.linalg.eigvalsh(under_root).clamp(min=0).sqrt().sum(dim=-1)
    spread = exact_changes(real, sets, exact).std().item()
    matrix, root_scale = normalised(under_root)
    for precision, (method, polynomials) in itertools.product(PRECISIONS, POLYNOMIALS.items()):
        for step, (y, z, residual) in enumerate(iterates(matrix, polynomials(max(ITERATIONS)), precision), 1):
            if step not in ITERATIONS:
                continue
            for corrected, trace in enumerate((trace_of(y), corrected_trace(matrix, y, z))):
                named = {"d": d, "n": n, "power": power, "precision": precision, "method": method}
                named |= {"corrected": corrected, "iterations": step, "residual": f"{residual.mean().item():.3g}"}
                yield named | measured_errors(-2 * (trace * root_scale - exact) / spread)


def measured_errors(errors: torch.Tensor) -> dict[str, str]:
    """The three measures described above, for errors [1 + B] of the base set and the candidates."""
    base, errors = errors[0], errors[1:]
    measures = errors.square().mean().sqrt(), (errors - base).square().mean().sqrt(), errors.std()
    return {name: f"{m.item():.3g}" for name, m in zip(("error", "error_subtracted", "noise"), measures, strict=True)}


def verdict(rows: list[dict]) -> None:
    """Prints, for every precision, method and correction, from how many steps on it is good enough in all settings."""
    print(f"\nGood enough for a reward: error below {GOOD_ENOUGH:.0%} of the candidates' spread, in the worst setting.")
    print(f"{'precision':9} {'method':13} {'corrected':9}  {'base set kept':28}  base set subtracted")
    for precision, method, corrected in itertools.product(PRECISIONS, POLYNOMIALS, (0, 1)):
        ours = [r for r in rows if (r["precision"], r["method"], r["corrected"]) == (precision, method, corrected)]
        said = [worst_of_settings(ours, name) for name in ("error", "error_subtracted")]
        print(f"{precision:9} {method:13} {'yes' if corrected else 'no':9}  {said[0]:28}  {said[1]}")


def worst_of_settings(rows: list[dict], name: str) -> str:
    """The number of steps from which the largest error of all settings stays good enough, and its lowest value."""
    worst = {step: max(not_a_number_last(r[name]) for r in rows if r["iterations"] == step) for step in ITERATIONS}
    best = min(worst, key=worst.get)
    bad = [step for step in ITERATIONS if worst[step] >= GOOD_ENOUGH]
    first = (bad[-1] if bad else ITERATIONS[0] - 1) + 1
    found = f"GOOD from {first} steps" if first in ITERATIONS else "NOT GOOD"
    return f"{found}, best {worst[best]:.1e} at {best}"


def not_a_number_last(text: str) -> float:
    """The number, or infinity for NaN."""
    number = float(text)
    return number if number == number else float("inf")


@torch.no_grad()
def main() -> None:
    """Writes the CSV, then prints what it shows."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "newton_schulz_error.csv")
    arguments = parser.parse_args()
    rows = []
    with open(arguments.out, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS)
        writer.writeheader()
        for setting in SETTINGS:
            print("d = {}, N = {}, variances i^-{:g}".format(*setting), flush=True)
            for row in rows_of(*setting, arguments.candidates):
                writer.writerow(row)
                rows.append(row)
    verdict(rows)


if __name__ == "__main__":
    main()
