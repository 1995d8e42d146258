"""What to train and measure with; the embedded default needs none of these paths."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sit_rl.options.option import option

NO_JUDGE, AUTO_JUDGES = "none", "auto"  # words of --judge-features


@dataclass(frozen=True)
class FileOptions:
    """What to train and measure with; the embedded default needs none of these paths."""

    checkpoint: Path | None = option(
        None,
        "SiT or DiT weights: .safetensors, an official .pt (bare state dict or {model, ema, ...}), or a folder of "
        "sit_rl.pretrain base",
    )
    architecture: Literal["auto", "sit", "dit"] = option(
        "auto",
        "of the weights; auto: as the file's metadata say, else dit for a file named DiT-…, else sit",
    )
    merge: tuple[Path, ...] = option((), "merging: the checkpoints whose weights are merged, two or more of one shape")
    vae: Path | None = option(None, "folder of a diffusers AutoencoderKL, for models of latents")
    images: Path | None = option(
        None,
        "the images that the model of --checkpoint was trained on (sit_rl.pretrain base --images); its training and "
        "held-out parts are the real images of the reward and of the judge",
    )
    real: Path | None = option(None, "the reward's real images or statistics (.npz with mu, sigma)")
    heldout: Path | None = option(
        None,
        "the judge's real images or statistics; default: embedded, or for other models --real, as in the paper",
    )
    embedded_images: int = option(
        0, "how many of the embedded real images to use of each split, evenly spaced; 0 means all"
    )
    reward_features: str = option(
        "fashion-a", "first feature network of the reward: any that `fastfid eval --network` takes"
    )
    judge_features: tuple[str, ...] = option(
        ("fashion-b", "fashion-e"),
        "networks that only judge, the first of them in the table; none: no judge; auto: the embedded judges, and an "
        "ImageNet network where one is installed that is neither rewarded nor the teacher of a rewarded one",
    )
    weights: tuple[str, ...] = option(
        (), "weights file of the feature network, such as Inception's, or NAME=PATH for several"
    )

    def check(self) -> None:
        """ValueError for judges that contradict each other, too few embedded images, or two sets of real ones."""
        if self.images is not None and self.real is not None:
            raise ValueError(
                f"--images {self.images} and --real {self.real} both give the reward's real images; pass one of them"
            )
        for word in (NO_JUDGE, AUTO_JUDGES):
            if word in self.judge_features and len(self.judge_features) > 1:
                raise ValueError(
                    f"--judge-features {' '.join(self.judge_features)}: {word} stands alone; leave one of them out"
                )
        repeated = [name for name in self.judge_features if self.judge_features.count(name) > 1]
        if repeated:
            raise ValueError(f"--judge-features names {repeated[0]} twice; name it once")
        if self.embedded_images and self.embedded_images < 200:
            raise ValueError(
                f"--embedded-images is {self.embedded_images}; at least 200 are needed for 128 features, or 0 for all"
            )
