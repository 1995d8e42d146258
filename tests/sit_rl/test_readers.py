"""Whatever lies in the place of a file that the trainer reads, the error is one sentence with the file's name."""

import gzip
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fastfid.runtime import input_files
from sit_rl.compare import print_comparison
from sit_rl.components.image_sets import load_official
from sit_rl.config import Config
from sit_rl.config_files import load_config
from sit_rl.files.paths import reading as flagged
from sit_rl.files.tensor_files import read_safetensors
from sit_rl.generation.record import check_same_recipe
from sit_rl.generation.sample_files import AdmNpz, PngFolder
from sit_rl.learner.checkpoint import load_values
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.sit import SiT, SiTConfig
from sit_rl.runs.run_folder import is_run
from sit_rl.runs.summary import load_summary

RUN = Path(__file__).parents[2] / "bench" / "results" / "fashion" / "advantage_matching-0.json"
DEEP = "[" * 100_000


def sentence(read, path, named=None):
    with pytest.raises((ValueError, OSError)) as error:
        read(path)
    text = str(error.value)
    assert str(named or path) in text and "\n" not in text and len(text) < 700
    return text


def into(path, kind):
    """Put a pipe, or a link to a device, in the place of a file."""
    path.unlink(missing_ok=True)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to("/dev/zero")
    return path


# --- config.yaml -------------------------------------------------------------------------------------------------

ALIASES = "a: &a [1, 1]\n" + "".join(
    f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefghij", "bcdefghijk", strict=True)
)
CONFIGS = {
    "deep": DEEP,
    "deep tables": "{a: " * 3000,
    "aliases": ALIASES,
    "an alias as a value": "seed: &a 3\nsteps: *a\n",
    "long number": "seed: " + "9" * 5000,
    "a number beyond float": "lr: " + "9" * 400,
    "list": "- 1",
    "nothing": "",
    "a table as a key": "? {a: 1}\n: 2",
    "control character": "seed: \x07",
    "terminal": '"\\e[2J": 1',
    "long": "seed: 1\n" + "#" * (1 << 17),
    "a list of lists": "ema_power: [[1], [2]]",
    "a key twice": "seed: 1\nsteps: 2\nseed: 3",
    "a key twice within": "rollout: {steps: 1, steps: 2}",
    "a sampler of lists": "rollout: {kind: [ode]}",
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_configs_of_another_kind(tmp_path, kind):
    (tmp_path / "config.yaml").write_text(CONFIGS[kind])
    assert "\x1b" not in sentence(load_config, tmp_path / "config.yaml")


def test_brackets_inside_each_other_are_refused_before_they_are_parsed(tmp_path):
    (tmp_path / "config.yaml").write_text("ema_power: " + "[" * 11 + "]" * 11)
    assert "more than 10 brackets inside each other" in sentence(load_config, tmp_path / "config.yaml")


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_for_a_config(tmp_path, kind):
    into(tmp_path / "config.yaml", kind)
    assert f"is a {kind}, not a file" in sentence(load_config, tmp_path / "config.yaml")
    assert not is_run(tmp_path)


def test_a_saved_config_has_no_alias(tmp_path):
    shared = (0.05, 0.1)
    config = Config().changed(ema_power=shared, weights=("a=b", "a=b"))
    config.save(tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config


# --- summary.json ------------------------------------------------------------------------------------------------


def changed(**parts):
    return json.dumps(json.loads(RUN.read_text()) | parts)


SUMMARIES = {
    "deep": DEEP,
    "long number": "9" * 5000,
    "list": "[]",
    "text": '"config"',
    "not a number": "NaN",
    "config of text": changed(config="x"),
    "no samplers": changed(before={}),
    "samplers of lists": changed(after={"ode": [], "sde": []}),
    "metrics of text": changed(before={"ode": {"fd": "1"}, "sde": {"fd": "1"}}),
    "metrics of nothing": changed(before={"ode": {}, "sde": {}}, after={"ode": {}, "sde": {}}),
    "seconds of text": changed(seconds="x"),
    "no seconds": changed(seconds={}),
    "floor of lists": changed(floor=[1]),
    "protocol of text": changed(protocol="x"),
    "no networks": changed(protocol={"networks": {}, "samplers": {"ode": "ODE", "sde": "SDE"}}),
}


@pytest.mark.parametrize("kind", SUMMARIES)
def test_summaries_of_another_kind(tmp_path, kind):
    (tmp_path / "summary.json").write_text(SUMMARIES[kind])
    for given in (tmp_path, tmp_path / "summary.json"):
        sentence(lambda path: print_comparison((path,)), given, tmp_path / "summary.json")


def test_whole_summaries_are_read_as_before():
    assert load_summary(RUN) == json.loads(RUN.read_text())


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_pipe_or_a_device_for_a_summary(tmp_path, kind):
    assert f"is a {kind}" in sentence(load_summary, into(tmp_path / "summary.json", kind))
    assert f"is a {kind}" in sentence(load_values, tmp_path, into(tmp_path / "state.json", kind).parent)


# --- records of samples ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [DEEP, "9" * 5000, "[]", '"x"', "", "\x00"])
@pytest.mark.parametrize("make", [PngFolder, AdmNpz])
def test_records_of_another_kind(tmp_path, make, text):
    files = make(tmp_path / "x.npz", 3, (3, 8, 8))
    files.record_path.parent.mkdir(exist_ok=True, parents=True)
    files.record_path.write_text(text)
    sentence(lambda _: files.read_record(), files.record_path)
    into(files.record_path, "pipe")
    assert "is a pipe" in sentence(lambda _: files.read_record(), files.record_path)


@pytest.mark.parametrize("there", [{"a": 1, "b": 2}, {}, [], "x", None, {"a": {"c": 1}}])
def test_a_record_with_other_entries_is_another_recipe(tmp_path, there):
    """Also one that has all that is asked for, and more."""
    files = PngFolder(tmp_path, 3, (3, 8, 8))
    for asked in ({"a": 1}, {"a": {"b": 1}}, None):
        if there != asked:
            with pytest.raises(ValueError, match="holds images of another [a-z ]+: .*; choose another"):
                check_same_recipe({"model": there}, {"model": asked}, files)


def test_a_damaged_part_of_samples_is_made_again(tmp_path):
    files = AdmNpz(tmp_path / "x.npz", 3, (3, 8, 8))
    files.open()
    part = files.part_path(0, 3)
    for content in (b"", b"\x93NUMPY", b"\x93NUMPY\x01\x00\x02\x00(\n", b"PK\x03\x04"):
        part.write_bytes(content)
        (tmp_path / "x.npz").write_bytes(content)
        assert not files.has(range(3))
    files.write(range(3), torch.zeros(3, 3, 8, 8, dtype=torch.uint8))
    assert files.has(range(3))


# --- weights -----------------------------------------------------------------------------------------------------

SHAPE = SiTConfig(image_size=8, patch_size=4, channels=3, width=32, depth=1, heads=2, num_classes=5)


@pytest.fixture(scope="module")
def state():
    return SiT(SHAPE).state_dict()


@pytest.mark.parametrize("heads", ["0", "-2", "3", "x", "9" * 5000, ""])
def test_heads_that_no_model_has(tmp_path, state, heads):
    save_file(state, tmp_path / "x.safetensors", metadata={"heads": heads, "architecture": "sit"})
    told = sentence(load_model, tmp_path / "x.safetensors")
    assert "is not of an architecture that sit_rl knows: " in told
    assert heads not in ("0", "-2", "3") or f"width 32 is not a multiple of heads {heads}" in told


HEADERS = [
    DEEP, '{"a":' * 100_000, "[]", "7", '{"a": 7}', '{"a": {"data_offsets": [0, NaN]}}', '{"a": {"data_offsets": "x"}}',
    '{"a": {"data_offsets": [0, "x"]}}', '{"a": {"data_offsets": [0, 1e999]}}',
    '{"a": {"data_offsets": [0, 1' + "0" * 900 + "]}}",
]  # fmt: skip


@pytest.mark.parametrize("header", HEADERS, ids=range(len(HEADERS)))
def test_headers_of_safetensors_of_another_kind(tmp_path, header):
    """The file is read again for a diagnosis, behind the flag."""
    path = tmp_path / "x.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode())

    def read(path):
        with flagged("--checkpoint", path):
            load_model(path)

    assert sentence(read, path).startswith("--checkpoint ")


def test_states_of_another_kind(tmp_path, state):
    name, unknown = "x_embedder.proj.weight", "is not of an architecture that sit_rl knows: "
    for other, told in (
        ({}, f"{unknown}not a SiT checkpoint: it has no tensor"),
        ([], "holds a list, not a state dict"),
        (3, "holds a int, not a state dict"),
        ({"ema": 3}, "holds a int, not a state dict"),
        ({"ema": {"a": 3}}, "holds a int among its weights"),
        ({"model": []}, "has no 'ema' weights; choose --weights model"),
        ({name: 3}, "holds a int among its weights"),
        ({1: 2}, "holds a int among its weights"),
        ({1: torch.zeros(2)}, f"{unknown}1 is not the name of a tensor"),
        ({name: torch.zeros(())}, unknown),
        ({"blocks.x": torch.zeros(2)} | state, unknown),
        (state | {name: torch.zeros(1).expand(10**9, 3, 4, 4)}, "claims to hold 192,0"),
        ({key: value[None] for key, value in state.items()}, unknown),
    ):
        torch.save(other, tmp_path / "x.pt")
        assert told in sentence(load_model, tmp_path / "x.pt"), other


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_weights_that_are_no_plain_floats_are_refused(tmp_path, state, suffix):
    """A model of them would end in a traceback later, or make other images."""
    name = "x_embedder.proj.weight"
    kinds = {
        "sparse": (state[name].to_sparse(), "sparse_coo tensor; save its .to_dense()"),
        "meta": (state[name].to("meta"), "tensor on the device meta, without values"),
        "int8": (state[name].to(torch.int8), f"{name} is of int8, not of a float type"),
        "complex": (state[name].to(torch.complex64), f"{name} is of complex64, not of a float type"),
    }
    for kind, (tensor, told) in kinds.items():
        changed, path = state | {name: tensor}, tmp_path / f"x{suffix}"
        if suffix == ".pt":
            torch.save(changed, path)
        elif kind == "int8":
            save_file(changed, path)
        else:
            continue  # such a file cannot hold them
        assert told in sentence(load_model, path), kind


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_pipes_bombs_and_devices_for_weights(tmp_path, name):
    (tmp_path / name).write_bytes(b"Nr\xff\xff\xff\x0f.")
    sentence(load_model, tmp_path / name)
    for kind in ("pipe", "device"):
        assert f"is a {kind}" in sentence(load_model, into(tmp_path / name, kind))
    assert "is a device" in sentence(read_safetensors, tmp_path / name)


def test_whole_weights_are_read(tmp_path, state):
    model = SiT(SHAPE)
    save_model(model, tmp_path / "x.safetensors")
    torch.save({"ema": model.state_dict()}, tmp_path / "x.pt")
    for name in ("x.safetensors", "x.pt"):
        loaded = load_model(tmp_path / name, heads=2).state_dict()
        assert all(torch.equal(value, loaded[key]) for key, value in model.state_dict().items())


# --- Fashion-MNIST -----------------------------------------------------------------------------------------------


def test_gzip_that_inflates_beyond_proportion(tmp_path, monkeypatch):
    monkeypatch.setattr(input_files, "FREE_BYTES", 1 << 16)
    path = tmp_path / "train-images-idx3-ubyte.gz"
    path.write_bytes(gzip.compress(bytes(1 << 22)))
    assert "and claims to hold" in sentence(lambda _: load_official(tmp_path, "train"), path)
    path.write_bytes(gzip.compress(b"short")[:-3])
    assert "cannot be read as gzip" in sentence(lambda _: load_official(tmp_path, "train"), path)
    assert "is a pipe" in sentence(lambda _: load_official(tmp_path, "train"), into(path, "pipe"))


def test_no_file_of_weights_is_a_pickle_that_runs(tmp_path):
    class Call:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / "x.pt").write_bytes(pickle.dumps({"ema": Call()}))
    sentence(load_model, tmp_path / "x.pt")
    assert not (tmp_path / "ran").exists()
