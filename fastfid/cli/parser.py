"""The arguments of every fastfid command, one dataclass a command; help and wrong arguments need no torch.

The names of the fields are the flags.  Values that a flag writes as one word, such as LOW,HIGH, are checked by
`parse_arguments`, so that a wrong one is refused before any work.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, cast

from tyro.conf import FlagCreatePairsOff, Positional, arg

from fastfid import __version__
from fastfid.cli.command_line import DONE, abbreviations_completed, parse, refuse
from fastfid.features.names import BATCH_SIZE, NETWORK_NAMES
from fastfid.protocols import METRICS, PROTOCOLS, protocol_named
from fastfid.runtime.cache_folder import cache_folder
from fastfid.runtime.imported_objects import FORM, object_name

PROGRAM = "fastfid"
IMAGES = "folder, .zip, .tar, .npz or .npy of images"
SIDE = f"{IMAGES}, or a file of statistics or features"

Switch = Annotated[bool, FlagCreatePairsOff]  # --flag without a --no-flag
Side = Annotated[str, arg(help=SIDE)]


def text_option(metavar: str, help: str, default: str | None = None) -> object:
    """Metadata of an option that takes one word; `default` says in words what stands for it when it is not given."""
    return arg(metavar=metavar, help=help, help_behavior_hint=f"(default: {default})" if default else "")


def switch(help: str) -> object:
    """Metadata of a flag without a value."""
    return arg(help=help, help_behavior_hint="")


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Options of every command that may run a network."""

    network: Annotated[
        str | None, text_option("NAME", f"of {', '.join(NETWORK_NAMES)}, or your own, {FORM}; eval takes several "
                                "separated by commas", default="the protocol's, or by the images")
    ] = None  # fmt: skip
    protocol: Annotated[
        str | None,
        text_option("NAME", f"network, resizing and metric defaults of a tool: {', '.join(PROTOCOLS)}"),
    ] = None
    weights: Annotated[
        str | None, text_option("PATH", "weights file of the network, or NAME=PATH,NAME=PATH for several")
    ] = None
    batch_size: Annotated[int, arg(metavar="N", help="images that the network sees at once")] = BATCH_SIZE
    workers: Annotated[
        int | None, text_option("N", "threads that decode files", default="one for each core, up to 8")
    ] = None
    value_range: Annotated[str | None, text_option("LOW,HIGH", "of float images in .npz and .npy")] = None
    device: Annotated[
        str, arg(metavar="NAME", help="of network and metrics: cpu, cuda, or auto for a GPU if there is one")
    ] = "auto"
    no_cache: Annotated[
        Switch, switch(f"neither read nor write the cache of features ({cache_folder()}; FASTFID_CACHE sets another)")
    ] = False
    skip_corrupt: Annotated[Switch, switch("leave unreadable images out, with a warning")] = False
    class_folders: Annotated[Switch, switch("folders such as 00000, chunk_3, a7 or train are classes")] = False
    class_names: Annotated[
        str | None, text_option("FILE", "names of numbered classes: a JSON list or object, or text, one name a line")
    ] = None
    force: Annotated[Switch, switch("compare what does not match, with a warning")] = False

    def check(self) -> None:
        """ValueError in one sentence for a value that no command can use."""
        protocol_named(self.protocol)
        self.settings()

    def settings(self) -> dict[str, Any]:
        """Keyword arguments of `evaluate`, `diff` and `statistics_of`."""
        return {
            "protocol": self.protocol,
            "weights": None if self.weights is None else weights_of(self.weights),
            "device": self.device,
            "batch_size": self.batch_size,
            "workers": self.workers,
            "class_folders": self.class_folders,
            "class_names": self.class_names,
            "value_range": None if self.value_range is None else range_of(self.value_range),
            "cache": not self.no_cache,
            "skip_corrupt": self.skip_corrupt,
            "force": self.force,
            "progress": True,
        }


@dataclass(frozen=True, kw_only=True)
class JsonOption:
    """The option of every command that can print JSON."""

    json: Annotated[Switch, switch("print one JSON object instead of text")] = False


@dataclass(frozen=True)
class Evaluate(NetworkOptions, JsonOption):
    """What `fastfid eval` is given."""

    purpose: ClassVar[str] = "every metric of SAMPLES against REAL images, with intervals"

    samples: Annotated[Positional[Side], arg(metavar="SAMPLES")]
    real: Annotated[Positional[Side], arg(metavar="REAL")]
    metrics: Annotated[
        str | None, text_option("NAMES", f"comma-separated, of {', '.join(METRICS)}", default="the protocol's")
    ] = None
    kid_subset_size: Annotated[
        int | None, text_option("N", "rows of a KID subset", default="the protocol's")
    ] = None  # fmt: skip
    nearest_k: Annotated[
        int | None, text_option("K", "neighbour of precision, recall, density, coverage", default="the protocol's")
    ] = None
    split: Annotated[
        str | None,
        text_option("REAL", "other real images: adds FDr, FD divided by the FD of as many of these"),
    ] = None
    html: Annotated[str | None, text_option("PATH", "also write a self-contained report")] = None


@dataclass(frozen=True)
class Difference(NetworkOptions, JsonOption):
    """What `fastfid diff` is given."""

    purpose: ClassVar[str] = "is A nearer to the REAL images than B?"

    a: Annotated[Positional[Side], arg(metavar="A")]
    b: Annotated[Positional[Side], arg(metavar="B")]
    real: Annotated[Positional[Side], arg(metavar="REAL")]
    same_noise: Annotated[Switch, switch("image i of A and image i of B came from the same noise")] = False


@dataclass(frozen=True)
class MakeStatistics(NetworkOptions):
    """What `fastfid stats` is given."""

    purpose: ClassVar[str] = "write the statistics of IMAGES to OUT.npz"

    images: Annotated[Positional[str], arg(metavar="IMAGES", help=IMAGES)]
    out: Annotated[Positional[str], arg(metavar="OUT", help="the .npz to write; pytorch-fid reads its mu and sigma")]
    keep_features: Annotated[Switch, switch("also keep the features, for KID and others")] = False
    spatial: Annotated[Switch, switch("also statistics of spatial features (sFID)")] = False


@dataclass(frozen=True)
class Convert:
    """What `fastfid convert` is given."""

    purpose: ClassVar[str] = "write another tool's file of statistics as one of fastfid"

    file: Annotated[Positional[str], arg(metavar="IN", help=".npz, .npy, .pkl or .pt of statistics or features")]
    out: Annotated[Positional[str], arg(metavar="OUT", help="the .npz to write")]
    network: Annotated[
        str | None, text_option("NAME", "which of several networks in the file, or whose features they are")
    ] = None
    count: Annotated[
        int | None, text_option("N", "how many images they are of, where the file does not say")
    ] = None  # fmt: skip


@dataclass(frozen=True)
class Information(JsonOption):
    """What `fastfid info` is given."""

    purpose: ClassVar[str] = "what a file or a set of images holds, or what this installation can do"

    file: Annotated[Positional[str | None], arg(metavar="FILE", help=f"{SIDE}; left out: this installation")] = None
    network: Annotated[str | None, text_option("NAME", "which of several networks in the file")] = None


Command = Evaluate | Difference | MakeStatistics | Convert | Information

COMMANDS: dict[str, type[Command]] = {
    "eval": Evaluate,
    "diff": Difference,
    "stats": MakeStatistics,
    "convert": Convert,
    "info": Information,
}


@dataclass(frozen=True)
class Compare(NetworkOptions, JsonOption):
    """What `fastfid A B` is given."""

    purpose: ClassVar[str] = (
        "Fréchet distance of two sets of images.\n\nfurther commands, each with --help:\n"
        + "\n".join(f"  {name:<9}{form.purpose}" for name, form in COMMANDS.items())
    )

    a: Annotated[Positional[Side], arg(metavar="A")]
    b: Annotated[Positional[str], arg(metavar="B", help="the other set; with --save-stats the file to write")]
    save_stats: Annotated[Switch, switch("write the statistics of A to B (.npz) and stop")] = False
    version: Annotated[Switch, switch("print the version and stop")] = False


Form = Command | Compare


def parse_arguments(argv: list[str] | None = None) -> Form:
    """The form of the command that the words begin with, or of `fastfid A B`; SystemExit where a parser exits."""
    words = sys.argv[1:] if argv is None else argv
    named = bool(words) and words[0] in COMMANDS  # a folder of such a name is given as ./eval
    form: type[Form] = COMMANDS[words[0]] if named else Compare
    program, words = (f"{PROGRAM} {words[0]}", words[1:]) if named else (PROGRAM, words)
    flags = flags_of(form)
    words = abbreviations_completed(words, flags)
    if form is Compare and "--version" in words:
        print(f"{PROGRAM} {__version__}")
        raise SystemExit(DONE)
    remedy = "; --json prints: write `--json > FILE`" if "--json" in words and "--json" in flags else ""
    make = cast("Callable[..., Form]", form)
    parsed = parse(make, words, program=program, description=form.purpose, remedy=lambda unknown: remedy)
    try:
        if isinstance(parsed, NetworkOptions):
            parsed.check()
    except ValueError as error:
        refuse(PROGRAM, f"{error}")
    return parsed


def flags_of(form: type[Form]) -> tuple[str, ...]:
    """The long flags of a form."""
    options = [field for field in dataclasses.fields(form) if field.default is not dataclasses.MISSING]
    return ("--help", *(f"--{option.name.replace('_', '-')}" for option in options))


def words_of(text: str) -> list[str]:
    """The words between the commas."""
    return [part.strip() for part in text.split(",") if part.strip()]


def range_of(text: str) -> tuple[float, float]:
    """(low, high) from LOW,HIGH; ValueError for another form."""
    try:
        low, high = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"argument --value-range: {text!r} is no LOW,HIGH such as 0,1 or -1,1") from None
    return low, high


def weights_of(text: str) -> str | dict[str, str]:
    """A path, or {network: path} from NAME=PATH,NAME=PATH."""
    parts = [part.partition("=") for part in words_of(text)]
    if all((name in NETWORK_NAMES or object_name(name)) and equals for name, equals, _ in parts):
        return {name: path for name, _, path in parts}
    return text
