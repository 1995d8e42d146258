"""Named protocols: what other evaluation tools compute, so that their numbers and fastfid's can be compared.

A protocol sets the network, the resizing and rounding of images before it, and the defaults of the metrics.
`evaluate(…, protocol="adm")` and `--protocol adm` choose one.  No protocol changes the arithmetic of a distance: it is
float64, and no constant is added to a diagonal.
"""

from __future__ import annotations

from dataclasses import dataclass

METRICS = (
    "fd", "sfid", "is", "kid", "mmd", "cmmd", "sliced_wasserstein", "precision", "recall", "density", "coverage",
    "fd_infinity", "outliers",
)  # fmt: skip
OF_ONE_NETWORK = frozenset({"cmmd"})  # metrics that other networks do not have, so that no default asks for them
DEFAULT_METRICS = tuple(metric for metric in METRICS if metric not in OF_ONE_NETWORK)
HIGHER_IS_BETTER = frozenset({"is", "precision", "recall", "density", "coverage"})  # lower in all others


@dataclass(frozen=True)
class Protocol:
    """What a tool does between the images and the number.

    name             as `protocol=` and `--protocol` take it
    source           the tool and the version of it that was read
    network          used unless another is asked for
    inception        how images reach Inception: a name of fastfid.features.inception_resizing.INCEPTION_INPUTS
    dinov2           how images reach DINOv2: a name of fastfid.features.vision_transformers.DINOV2_INPUTS
    clip             how images reach CLIP: a name of fastfid.features.vision_transformers.CLIP_INPUTS
    mixed_sizes      each image is resized on its own, so that a folder may hold images of different sizes
    metrics          computed unless others are asked for
    nearest_k        neighbour whose distance is a point's radius (precision, recall, density, coverage)
    inclusive        precision and recall count a distance equal to the radius (<=); else only smaller ones (<)
    distances        how precision and recall measure: a name of fastfid.distances.precision_recall.DISTANCES
    kid_subsets      number of subsets of the KID estimate
    kid_subset_size  rows of a subset
    kid_caps         with fewer rows than that, the subsets shrink; else KID is left out
    kid_seed         of the subsets' RandomState
    is_splits        parts whose scores the Inception Score averages
    is_split_size    images of a part, the last one shorter; None: is_splits equal parts
    is_shuffle       permute the images before splitting (RandomState(kid_seed), as torch-fidelity)
    """

    name: str
    source: str
    network: str
    inception: str
    dinov2: str
    clip: str = "pil"
    mixed_sizes: bool = False
    metrics: tuple[str, ...] = DEFAULT_METRICS
    nearest_k: int = 5
    inclusive: bool = False
    distances: str = "exact"
    kid_subsets: int = 100
    kid_subset_size: int = 1000
    kid_caps: bool = True
    kid_seed: int = 2020
    is_splits: int = 10
    is_split_size: int | None = None
    is_shuffle: bool = True

    def input_of(self, network: str) -> str | None:
        """How images reach `network`: a name in its table of inputs, None where there is only one way."""
        if network == "inception":
            return self.inception
        if network.startswith("dinov2"):
            return self.dinov2
        return self.clip if network.startswith(("clip", "openclip")) else None


_ALL = (
    # No other tool's: the embedded network for small grey images and the best installed one for others
    # (evaluation/network_choice.py), prdc's strict neighbours with k = 5, KID subsets that shrink to fit.
    Protocol("fastfid", "this package's own defaults", "fashion-a", inception="tf1", dinov2="pil"),
    # The TensorFlow graph: TF-1 bilinear, (x − 128)/128; k = 3 without the point itself, <=; Inception Score over parts
    # of 5,000 images in file order.  Its squared distances are float16 (spacing 0.25 between 256 and 512), and so are
    # these; exact distances change precision and recall by up to 3e-3.
    Protocol(
        "adm",
        "openai/guided-diffusion evaluations/evaluator.py",
        "inception",
        inception="tf1",
        dinov2="pil",
        metrics=("fd", "sfid", "is", "precision", "recall"),
        nearest_k=3,
        inclusive=True,
        distances="adm",
        is_split_size=5000,
        is_shuffle=False,
    ),
    # F.interpolate bilinear, align_corners=False, no antialiasing, 2x − 1 on [0, 1]; FID is all it computes.
    Protocol(
        "pytorch-fid",
        "mseitzer/pytorch-fid 0.3.0",
        "inception",
        inception="bilinear",
        dinov2="pil",
        metrics=("fd",),
    ),
    # PIL bicubic on float channels, clipped to 0…255 and not rounded; KID of min(n, 1000) rows.  The tool draws them
    # from NumPy's unseeded global generator, so KID agrees in distribution only.
    Protocol(
        "clean",
        "GaParmar/clean-fid 0.1.35, mode clean",
        "inception",
        inception="clean",
        dinov2="pil",
        mixed_sizes=True,
        metrics=("fd", "kid"),
    ),
    # TF-1 bilinear, (x − 128)/128; KID raises below 1000 images; IS shuffled by RandomState(2020), 10 splits.  Its
    # precision and recall (k = 3, <=) use VGG-16 by default; here they use the chosen network.
    Protocol(
        "torch-fidelity",
        "toshas/torch-fidelity 0.4.0",
        "inception",
        inception="tf1",
        dinov2="tf1",
        clip="tf1",
        metrics=("fd", "is", "kid", "precision", "recall"),
        nearest_k=3,
        inclusive=True,
        kid_caps=False,
    ),
    # Inception as StyleGAN's port of the TensorFlow graph; DINOv2 after torch's antialiased bicubic, float, unclipped.
    Protocol(
        "edm2",
        "NVlabs/edm2 calculate_metrics.py, read for its conventions only",
        "inception",
        inception="tf1",
        dinov2="torch",
        metrics=("fd",),
    ),
    # PIL bicubic to 224 on uint8 (rounded, no crop), /255, ImageNet mean and deviation, CLS token of ViT-L/14; k = 5.
    # The tool draws 10,000 images a side for the neighbours, without a seed; here all images count.
    Protocol(
        "dgm-dinov2",
        "layer6ai-labs/dgm-eval",
        "dinov2",
        inception="bilinear",
        dinov2="pil",
        mixed_sizes=True,
        metrics=("fd", "fd_infinity", "kid", "precision", "recall", "density", "coverage"),
    ),
    # Antialiased bilinear since 1.8.0 (its #3177), then (x − 128)/128; KID raises when subset_size exceeds the images.
    Protocol(
        "torchmetrics",
        "Lightning-AI/torchmetrics 1.9.0, defaults",
        "inception",
        inception="antialiased",
        dinov2="pil",
        metrics=("fd", "is", "kid"),
        kid_caps=False,
    ),
    # The centre square, PIL bicubic to 336 on uint8; embeddings of CLIP ViT-L/14-336 of length 1, Gaussian kernel with
    # bandwidth 10, biased MMD² times 1000 (Jayasumana et al. 2024).
    Protocol(
        "cmmd",
        "google-research cmmd, read in its port sayakpaul/cmmd-pytorch",
        "clip-l14-336",
        inception="tf1",
        dinov2="pil",
        clip="square",
        mixed_sizes=True,
        metrics=("cmmd",),
    ),
)

PROTOCOLS = {protocol.name: protocol for protocol in _ALL}


def protocol_named(name: str | Protocol | None) -> Protocol:
    """The protocol called `name`; None is "fastfid", our own; ValueError lists the names."""
    if isinstance(name, Protocol):
        return name
    if name is None:
        return PROTOCOLS["fastfid"]
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {name!r}; choose one of {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]
