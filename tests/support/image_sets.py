"""Small images, fastfid's command run on them, and the distance that it must print."""

import numpy as np
import torch

import fastfid.__main__ as command
from fastfid import FeatureMoments, feature_extractor, frechet_distance

# Features of other batch sizes differ in float32 rounding; the distance of these sets is near 10, its terms near 100.
BATCHING = 1e-4


def pixels(n, seed):
    """uint8 [n, 28, 28], noise whose brightness depends on the seed."""
    return (np.random.default_rng(seed).random((n, 28, 28)) * (200 + 10 * seed)).astype(np.uint8)


def run(capsys, *arguments):
    """Exit status, stdout and stderr of `fastfid ARGUMENTS`."""
    status = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def expected_distance(network):
    """Distance of `pixels(150, 1)` and `pixels(140, 2)`, the sets a and b, without the command."""
    extractor = feature_extractor(network)
    a, b = (
        FeatureMoments.from_features(extractor(torch.from_numpy(pixels(n, seed))[:, None]))
        for n, seed in ((150, 1), (140, 2))
    )
    return frechet_distance(a, b)
