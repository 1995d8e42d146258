"""The reward (arXiv 2607.02291): m new images take the place of m of the N images of the reference set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastfid.runtime.imported_objects import FORM
from sit_rl.options.option import check_bounds, option
from sit_rl.reward_names import KINDS, components_of


@dataclass(frozen=True)
class RewardOptions:
    """The reward (arXiv 2607.02291): m new images take the place of m of the N images of the reference set."""

    components: tuple[str, ...] = option(
        (),
        f"components of the reward: any of {', '.join(KINDS)}, with :NETWORK for another network than "
        f"--reward-features, {FORM} for a function of images and labels or a set reward, and =WEIGHT; default: the "
        "preset's, or fd where --reward-features names another network",
        flag="reward",
    )
    reference: Literal["rolling", "refresh", "fresh"] = option(
        "rolling",
        "rolling: a step's images replace the oldest of the reference set; refresh: all are renewed every "
        "--refresh-every steps; fresh: none, a step's images are the set, and each of them is left out in turn",
    )
    reference_size: int = option(5_000, "N, images", least=1)
    replace: int = option(50, "m, images of one candidate subset", least=1)
    candidates: int = option(32, "B, subsets a step; B·m images are rolled out", least=1)
    refresh_every: int = option(10, "steps between regenerations (reference = refresh)", least=1)
    credit: Literal["subset", "image", "influence"] = option(
        "image", "subset: one reward for its images; image: exact change by each image; influence: its first order"
    )
    normalise: Literal["batch", "class"] = option(
        "class", "standardise advantages over the batch (the paper) or within each class"
    )
    advantage_clip: float = option(3.0, "bound on |advantage|, standard deviations", above=0)
    fade: bool = option(
        True, "scale advantages by the spread of rewards relative to the first step's; --no-fade as in the paper"
    )
    keep: float | Literal["all"] | None = option(
        None, "fraction of samples, best reward first, that trains; default: the estimator's"
    )
    device: Literal["auto", "cpu"] = option(
        "auto",
        "where the swap engine runs; auto: with the features; cpu: in host memory, prepared beside rollout and update",
        flag="reward_device",
        machine=True,
    )
    eigensolver: Literal["auto", "device", "host"] = option(
        "auto",
        "where a reference set on a GPU is decomposed, beside the update: device: there, in a side stream; host: in a "
        "thread; auto: as was faster in the first steps, which the log tells",
        machine=True,
    )

    @property
    def images_per_step(self) -> int:
        """B·m."""
        return self.candidates * self.replace

    @property
    def set_size(self) -> int:
        """Images of the set whose distance is measured."""
        return self.images_per_step if self.reference == "fresh" else self.reference_size

    @property
    def kept_fraction(self) -> float:
        """Fraction of a step's samples that trains."""
        return 1.0 if self.keep in ("all", None) else float(self.keep)

    def check(self) -> None:
        """ValueError if the numbers contradict each other."""
        check_bounds(self)
        others = [word for word in self.components if components_of((word,), "")[0].kind != "fd"]
        if self.credit == "influence" and others:
            raise ValueError(f"--credit influence is known for fd only, not for --reward {others[0]}; choose image")
        if self.reference == "fresh":
            if self.candidates < 2 or self.images_per_step - self.replace < 2:
                raise ValueError(
                    f"--reference fresh leaves subsets out of a step's images; --candidates {self.candidates} × "
                    f"--replace {self.replace} leave fewer than 2 of them: raise --candidates"
                )
        elif self.replace > self.reference_size - 2:
            raise ValueError(
                f"--replace {self.replace} leaves fewer than 2 of the --reference-size {self.reference_size} images; "
                "lower it"
            )
        if self.reference == "rolling" and self.images_per_step > self.reference_size:
            raise ValueError(
                f"--candidates {self.candidates} × --replace {self.replace} = {self.images_per_step} images a step "
                f"exceed the rolling reference of {self.reference_size}; lower one, raise --reference-size, or use "
                "--reference refresh"
            )
        if not 0 < self.kept_fraction <= 1:
            raise ValueError(f"--keep is {self.keep}; it must be 'all' or a fraction in (0, 1]")
