"""How often intervals hold over repeated draws.

Of R independent intervals that each hold with probability p, a share within 4√(p(1 − p)/R) of p do, but for 6 in 10⁵
cases; the ratio of a variance over R draws to its expectation is 1 ± 4√(2/R) for near-normal scores.
"""

import math

import numpy as np
import torch


def lower_limit(repeats, p=0.95):
    return p - 4 * math.sqrt(p * (1 - p) / repeats)


def rows(n, rng, shift=0.0, d=4):
    return torch.from_numpy(rng.normal(size=(n, d)) + shift).float()


def held(truth, intervals):
    return np.mean([low <= truth <= high for low, high in intervals])
