"""Which model is trained, if it is neither SiT nor DiT, and the prompts that it gets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sit_rl.models.pipeline_families import pipeline_folder
from sit_rl.options.option import check_bounds, option


@dataclass(frozen=True)
class ModelOptions:
    """Which model is trained, if it is neither SiT nor DiT, and the prompts that it gets."""

    model: str | None = option(
        None,
        "package.module:build or FILE.py:build, a function that returns the generator (docs/guides/own-model.md); or "
        "diffusers:FOLDER, a pipeline of SD3, Flux, Sana or Lumina 2 (docs/guides/prompts.md); default: SiT or DiT",
    )
    prompts: Path | None = option(
        None, 'the conditions, as JSON lines: {"prompt": "a red cube", "group": "cubes"}; the group is optional'
    )
    negative_prompt: str = option("", "the prompt that guidance leads away from")
    image_size: int | None = option(
        None, "height and width of a pipeline's images, pixels; default: the pipeline's", least=1
    )

    def check(self) -> None:
        """ValueError for a pipeline without prompts, or prompts without a model that takes them."""
        check_bounds(self)
        pipeline = pipeline_folder(self.model) is not None
        if pipeline and self.prompts is None:
            raise ValueError(f"--model {self.model} needs --prompts: a file with one prompt a line")
        if self.prompts is not None and self.model is None:
            raise ValueError(f"--prompts {self.prompts} needs --model: SiT and DiT take classes, not prompts")
        if not pipeline and (self.image_size is not None or self.negative_prompt):
            flag = "--image-size" if self.image_size is not None else "--negative-prompt"
            raise ValueError(f"{flag} is of a pipeline only; pass --model diffusers:FOLDER as well, or leave it out")
