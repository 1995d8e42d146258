"""One call of every route that may run on a device: ENGINE and METRICS map its name to call(device, folder)."""

import torch

from fastfid import FeatureMoments, SwapEngine, frechet_distance, kid, mmd, prdc
from fastfid.distances.precision_recall import precision_recall
from fastfid.distances.real_side import RealFactor, prepare
from fastfid.distances.window import FeatureWindow
from fastfid.linalg.iterative_roots import METHODS, trace_sqrt_product
from fastfid.swap.cross_checks import swap_change_ref

GENERATOR = torch.Generator().manual_seed(0)
REAL = torch.randn(300, 12, generator=GENERATOR)
REFERENCE = 1.1 * torch.randn(120, 12, generator=GENERATOR) + 0.1
REMOVED = torch.stack([torch.randperm(120, generator=GENERATOR)[:5] for _ in range(4)])
ADDED = torch.randn(4, 5, 12, generator=GENERATOR)


def engine_on(device, **options):
    moments = FeatureMoments.from_features(REAL.to(device))
    return SwapEngine(moments, REFERENCE.to(device), backend="torch", **options)


def gradient(device):
    added = ADDED.clone().to(device).requires_grad_()
    engine_on(device).score(REMOVED.to(device), added).sum().backward()
    return added.grad


def replaced(device):
    engine = engine_on(device).replace(REMOVED[0].to(device), ADDED[0].to(device))
    engine.replace(REMOVED[1].to(device), ADDED[1, :2].to(device))
    return engine.score(REMOVED[2:].to(device), ADDED[2:].to(device))


def kept_factor(device, folder):
    moments = FeatureMoments.from_features(REAL.to(device))
    RealFactor.kept(moments, folder / f"{device.type}.npz")
    return RealFactor.kept(moments, folder / f"{device.type}.npz").root


def windowed(device):
    window, other = (FeatureWindow(40, 12, device=device) for _ in range(2))
    for part in REAL.split(33):  # rows of the host
        window.add(part)
    other.load_state_dict(window.state_dict())
    assert window.drift() < 1e-12
    return torch.stack([window.moments.cov, other.moments.cov])


def streamed(device):
    moments = FeatureMoments.empty(12, device=device)
    for part in REAL.split(37):
        moments.update(part)
    other = FeatureMoments.from_features(REFERENCE.to(device))
    return moments.evict(REAL[:20]).copy().merge(other).all_reduce().cov


def distance_gradient(device):
    rows = REFERENCE.clone().to(device).requires_grad_()
    frechet_distance(FeatureMoments.from_features(REAL.to(device)), FeatureMoments.from_features(rows)).backward()
    return rows.grad


def sides(device):
    return REAL.to(device), REFERENCE.to(device)


def moments_of(device):
    return [FeatureMoments.from_features(rows) for rows in sides(device)]


ENGINE = {
    **{
        method: lambda d, _, m=method: engine_on(d, method=m).score(REMOVED.to(d), ADDED.to(d))
        for method in ("logdet", "eigh", "newton_schulz", "polar_express")
    },
    "float64": lambda d, _: engine_on(d, dtype=torch.float64).score(REMOVED.to(d), ADDED.to(d)),
    "chunks": lambda d, _: engine_on(d, workspace=1).change(REMOVED.to(d), ADDED.to(d)),
    "single images": lambda d, _: engine_on(d).change_each(REMOVED.to(d), ADDED.to(d)),
    "unequal": lambda d, _: engine_on(d).change(REMOVED.to(d), ADDED[:, :2].to(d)),
    "none": lambda d, _: engine_on(d).change(REMOVED[:0].to(d), ADDED[:0].to(d)),
    "leave one out": lambda d, _: engine_on(d).leave_one_out(),
    "influence": lambda d, _: engine_on(d).influence(ADDED.flatten(0, 1).to(d)),
    "gradient": lambda d, _: gradient(d),
    "replace": lambda d, _: replaced(d),
    "kept factor": kept_factor,
    "reference": lambda d, _: swap_change_ref(engine_on(d), REMOVED.to(d), ADDED.to(d)),
}
METRICS = {
    "window": lambda d, _: windowed(d),
    "stream": lambda d, _: streamed(d),
    "distance": lambda d, _: frechet_distance(*moments_of(d)),
    "prepared": lambda d, _: frechet_distance(prepare(moments_of(d)[0]), moments_of(d)[1]),
    "low rank": lambda d, _: frechet_distance(moments_of(d)[0], FeatureMoments.from_features(REFERENCE[:8].to(d))),
    "distance's gradient": lambda d, _: distance_gradient(d),
    "kid": lambda d, _: kid(*sides(d), subsets=5, subset_size=50).mean,
    "kid of the whole": lambda d, _: kid(*sides(d), subsets=100, subset_size=50).mean,
    "mmd": lambda d, _: mmd(*sides(d)).value,
    "polynomial mmd": lambda d, _: mmd(*sides(d), kernel="polynomial").value,
    "prdc": lambda d, _: list(prdc(*sides(d), 3).values()),
    "prdc of ties": lambda d, _: list(prdc(*(x.round() for x in sides(d)), 3).values()),
    "precision, recall": lambda d, _: list(precision_recall(*sides(d)).values()),
    "ADM's": lambda d, _: list(precision_recall(*sides(d), distances="adm").values()),
    **{
        f"root by {method}": lambda d, _, m=method: trace_sqrt_product(*(x.cov for x in moments_of(d)), m)
        for method in METHODS
    },
}
