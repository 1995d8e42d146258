"""Reading and writing weights: every format, damaged files, convert."""

import argparse
import json
import re
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sit_rl.models import convert
from sit_rl.models.dit import DiT
from sit_rl.models.loading import load_model, save_model
from sit_rl.models.sit import SiT, SiTConfig
from tests.support.random_sits import SMALL, random_sit


def save_forms(model, folder):
    state = model.state_dict()
    save_file(state, folder / "a.safetensors", {"heads": "4"})
    torch.save(state, folder / "bare.pt")
    zeros = {k: torch.zeros_like(v) for k, v in state.items()}
    args = argparse.Namespace(model="SiT-S/2", lr=1e-4)
    torch.save({"model": zeros, "ema": state, "opt": {"state": {}}, "args": args}, folder / "trainer.pt")
    return ("a.safetensors", "bare.pt", "trainer.pt")


def test_every_checkpoint_form_loads(tmp_path):
    config = SiTConfig(**{**SMALL.to_dict(), "width": 144, "heads": 2})  # 72 channels a head, as in XL
    model = random_sit(config)
    for name in save_forms(model, tmp_path)[1:]:
        loaded = load_model(tmp_path / name)
        assert loaded.config == config
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), loaded.parameters(), strict=True))


def test_safetensors_metadata_names_the_heads(tmp_path):
    save_forms(random_sit(), tmp_path)
    assert load_model(tmp_path / "a.safetensors").config == SMALL


def test_guessed_heads_are_told_and_can_be_given(tmp_path, capsys):
    model = random_sit()  # width 48 with 4 heads: a guess is 1
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    convert.main([str(tmp_path / "bare.pt"), str(tmp_path / "told.safetensors"), "--heads", "4"])
    assert "is a guess" not in capsys.readouterr().out
    assert load_model(tmp_path / "told.safetensors").config == SMALL and not capsys.readouterr().out
    assert load_model(tmp_path / "bare.pt").config.heads == 1
    assert "does not contain its number of heads; 1 is a guess" in capsys.readouterr().out
    with pytest.raises(ValueError, match="heads 5"):
        load_model(tmp_path / "bare.pt", heads=5)


def labelled(rows):
    """A small model whose label table has so many rows."""
    return random_sit(SiTConfig(**{**SMALL.to_dict(), "num_classes": rows, "null_class": False}))


@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (2, 1), (5, 4), (1000, 1000), (1001, 1000)])
def test_a_label_table_that_tells_nothing_is_read_as_published_and_told(tmp_path, capsys, rows, classes):
    """One row is one class; 1001 rows are the published models'; anything else is said."""
    path = tmp_path / "bare.pt"
    torch.save(labelled(rows).state_dict(), path)
    config = load_model(path, heads=4).config
    assert (config.num_classes, config.null_class) == (classes, rows > classes)
    told = capsys.readouterr().out
    assert told.count("note: ") == (rows not in (1, 1001))
    assert rows in (1, 1001) or f"--null-class {'no' if rows > classes else 'yes'}" in told
    for null in (True, False)[rows == 1 :]:
        config = load_model(path, heads=4, null_class=null).config
        assert (config.num_classes, config.null_class) == (rows - null, null) and not capsys.readouterr().out
    if rows == 1:
        with pytest.raises(ValueError, match="label table of 1 rows has no class beside the null class"):
            load_model(path, heads=4, null_class=True)


@pytest.mark.parametrize("null", ["yes", "no"])
def test_the_null_class_is_kept_in_files_and_read_from_a_trainers_arguments(tmp_path, capsys, null):
    model, classes = labelled(6), 6 - (null == "yes")
    torch.save(model.state_dict(), tmp_path / "bare.pt")
    convert.main([str(tmp_path / "bare.pt"), str(tmp_path / "a.safetensors"), "--heads", "4", "--null-class", null])
    assert (f"{classes} classes without a null class" in capsys.readouterr().out) == (null == "no")
    arguments = argparse.Namespace(model="SiT-S/2", num_classes=classes)
    torch.save({"model": {}, "ema": model.state_dict(), "args": arguments}, tmp_path / "trainer.pt")
    for path, heads in ((tmp_path / "a.safetensors", None), (tmp_path / "trainer.pt", 4)):
        config = load_model(path, heads=heads).config
        assert (config.num_classes, config.null_class) == (classes, null == "yes") and not capsys.readouterr().out
    with safe_open(tmp_path / "a.safetensors", "pt") as file:  # as versions without the field wrote it
        old = {k: v for k, v in file.metadata().items() if k not in ("null_class", "sit_rl_sha256")}
    save_file(model.state_dict(), tmp_path / "old.safetensors", old)
    assert load_model(tmp_path / "old.safetensors").config == load_model(tmp_path / "a.safetensors").config
    with pytest.raises(SystemExit):
        convert.main([str(tmp_path / "bare.pt"), str(tmp_path / "b.pt"), "--null-class", null])
    assert "--null-class cannot be kept in a .pt file" in capsys.readouterr().err


def wrapped(key, how):
    """A tensor's name in a model inside the wrappers `how`."""
    first, _, rest = key.partition(".")
    return {
        "DDP": f"module.{key}", "compile": f"_orig_mod.{key}", "DDP of compile": f"module._orig_mod.{key}",
        "compile of DDP": f"_orig_mod.module.{key}", "FSDP": f"_fsdp_wrapped_module.{key}",
        "blocks alone": ".".join(filter(None, [first, *(["_orig_mod"] if rest else []), rest])),
        "activations": ".".join(filter(None, [first, *(["_checkpoint_wrapped_module"] if rest else []), rest])),
    }[how]  # fmt: skip


@pytest.mark.parametrize(
    "how", ["DDP", "compile", "DDP of compile", "compile of DDP", "FSDP", "blocks alone", "activations"]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_names_of_wrapped_models_are_stripped_and_it_is_said(tmp_path, capsys, how, suffix):
    model, path = random_sit(), tmp_path / f"a{suffix}"
    state = {wrapped(key, how): value for key, value in model.state_dict().items()}
    save_file(state, path) if suffix == ".safetensors" else torch.save({"ema": state, "opt": {}}, path)
    loaded = load_model(path, heads=4)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    told = capsys.readouterr().out
    assert told.count("stripped ") == 1 and f"note: of {path}, sit_rl stripped " in told


def test_two_models_in_one_state_are_refused(tmp_path):
    state = random_sit().state_dict()
    torch.save({f"module.{key}": value for key, value in state.items()} | state, tmp_path / "a.pt")
    with pytest.raises(ValueError, match="a.pt: two of its tensors are 'pos_embed' without the names of wrappers"):
        load_model(tmp_path / "a.pt", heads=4)


def test_heads_of_repa_and_the_counter_of_an_average_are_dropped_and_it_is_said(tmp_path, capsys):
    model, path = random_sit(), tmp_path / "repa.pt"
    more = {
        "projectors.0.0.weight": torch.ones(2, 2),
        "projectors.0.0.bias": torch.ones(2),
        "n_averaged": torch.ones(()),
    }
    torch.save({"ema": model.state_dict() | more}, path)
    assert torch.equal(load_model(path, heads=4).pos_embed, model.pos_embed)
    told = capsys.readouterr().out
    assert "dropped projectors.0.0.weight and 2 more, which only training uses; in REPA's models time runs" in told
    torch.save(model.state_dict() | {"n_averaged": torch.ones(())}, path)
    load_model(path, heads=4)
    assert "dropped n_averaged, which only training uses\n" in capsys.readouterr().out
    torch.save({"ema": model.state_dict() | {"decoder.weight": torch.ones(1)}}, path)
    with pytest.raises(ValueError, match="decoder.weight is unknown"):
        load_model(path, heads=4)


@pytest.fixture
def parts(tmp_path):
    """An index, and the two files of a model that it lists, each with its own metadata."""
    state = random_sit().state_dict()
    names = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    places = {key: names[key.startswith("blocks.1")] for key in state}
    for name in names:
        save_file({k: v for k, v in state.items() if places[k] == name}, tmp_path / name, {"heads": "4"})
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index, places, tmp_path / names[1]


def test_the_parts_of_an_index_are_one_model(parts, tmp_path, capsys):
    index, places, part = parts
    loaded, model = load_model(index), random_sit()
    assert loaded.config.heads == 4
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in model.state_dict().items())
    convert.main([str(index), str(tmp_path / "whole.safetensors")])
    assert load_model(tmp_path / "whole.safetensors").config == loaded.config
    with pytest.raises(ValueError, match="is one of several parts; pass .*model.safetensors.index.json"):
        load_model(part)


def test_indices_that_do_not_fit_their_parts_are_refused(parts, tmp_path):
    index, places, part = parts
    whole = index.with_name(places["pos_embed"])
    (tmp_path / "elsewhere").mkdir()
    shutil.copy(whole, tmp_path / "elsewhere")  # a part that has the tensor, and does not lie beside the index
    outside = {**places, "pos_embed": f"elsewhere/{whole.name}"}
    wrong = {**places, "pos_embed": part.name}
    for content, told in (
        ("{", "is not an index of weights files"), ("[1]", "is not an index"), ('{"weight_map": 1}', "is not an index"),
        (json.dumps({"weight_map": outside}), "which is not beside it"),
        (json.dumps({"weight_map": wrong}), "lists 'pos_embed' in model-00002-of-00002.safetensors, which has no such"),
        (json.dumps({"weight_map": {}}), "no tensor 'x_embedder.proj.weight'"),
    ):  # fmt: skip
        index.write_text(content)
        with pytest.raises(ValueError, match=f"index.json .*{re.escape(told)}"):
            load_model(index)
    index.write_text(json.dumps({"weight_map": places}))
    part.unlink()
    with pytest.raises(ValueError, match="lists 'model-00002-of-00002.safetensors', which is not beside it"):
        load_model(index)


def test_a_trainers_two_sets_of_weights(tmp_path):
    model = random_sit(SiTConfig(**{**SMALL.to_dict(), "width": 144, "heads": 2}))
    save_forms(model, tmp_path)
    loaded = load_model(tmp_path / "trainer.pt", weights="model")
    assert not any(p.any() for p in loaded.parameters())
    assert torch.equal(load_model(tmp_path / "bare.pt", weights="model").pos_embed, model.pos_embed)
    torch.save({"model": model.state_dict(), "opt": {}}, tmp_path / "no_ema.pt")
    with pytest.raises(ValueError, match="has no 'ema' weights; choose --weights model"):
        load_model(tmp_path / "no_ema.pt")
    with pytest.raises(ValueError, match="choose one of ema, model"):
        load_model(tmp_path / "trainer.pt", weights="opt")


def test_loading_is_strict_in_float32_and_draws_nothing(tmp_path):
    model = random_sit(SiTConfig(**{**SMALL.to_dict(), "width": 144, "heads": 2}))
    state = model.state_dict()
    torch.save({k: v.half() for k, v in state.items()}, tmp_path / "half.pt")
    torch.save(state, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    torch.save(state | {"extra": torch.zeros(1)}, tmp_path / "extra.pt")
    torch.save({k: v for k, v in state.items() if k != "blocks.0.attn.proj.bias"}, tmp_path / "less.pt")
    before = torch.get_rng_state()
    half = load_model(tmp_path / "half.pt")
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.dtype == torch.float32 for p in half.parameters()) and not half.pos_embed.requires_grad
    torch.testing.assert_close(half.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight.half().float())
    assert torch.equal(load_model(tmp_path / "old.pt").blocks[1].mlp.fc2.weight, model.blocks[1].mlp.fc2.weight)
    for name, key in (("extra.pt", "extra is unknown"), ("less.pt", "blocks.0.attn.proj.bias is missing")):
        with pytest.raises(ValueError, match=key):
            load_model(tmp_path / name)


def test_safetensors_round_trip_keeps_weights_and_architecture(tmp_path):
    dit = DiT(SMALL)
    dit.load_state_dict(random_sit().state_dict())
    save_model(dit, tmp_path / "dit.safetensors", step="7")
    loaded = load_model(tmp_path / "dit.safetensors")
    assert type(loaded) is DiT and loaded.config == SMALL
    for key, value in dit.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    with pytest.raises(ValueError, match="is of a 'dit', not a 'sit'; choose --architecture dit"):
        load_model(tmp_path / "dit.safetensors", architecture="sit")
    save_file(dit.state_dict(), tmp_path / "wrong.safetensors", {"heads": "4", "depth": "9"})
    with pytest.raises(ValueError, match="metadata say depth 9, its tensors 2"):
        load_model(tmp_path / "wrong.safetensors")
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The library alone orders metadata at random: 11 entries come out equal twice in 1 of 11! cases."""
    model = random_sit()
    for name in ("a", "b"):
        save_model(model, tmp_path / name, note='of "both", für beide')
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    with safe_open(tmp_path / "a", "pt") as file:
        assert file.metadata()["note"] == 'of "both", für beide'
        for key, value in model.state_dict().items():
            assert torch.equal(file.get_tensor(key), value)


def test_a_damaged_torch_file_is_refused(tmp_path):
    """A bit of some bytes: the file is refused by its own checksums, or the byte is one that no tensor depends on."""
    path, model = tmp_path / "model.pt", random_sit()
    torch.save(model.state_dict(), path)
    good, refused = path.read_bytes(), 0
    for i in range(0, len(good), 997):
        path.write_bytes(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
        try:
            loaded = load_model(path)
        except ValueError as error:
            assert str(path) in str(error)
            refused += "is damaged: the checksum" in str(error)
        else:
            assert all(torch.equal(x, y) for x, y in zip(loaded.parameters(), model.parameters(), strict=True))
    assert refused > 100


def test_a_torch_file_without_checksums_is_read(tmp_path):
    model = random_sit()
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "model.pt")
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(load_model(tmp_path / "model.pt").pos_embed, model.pos_embed)


def test_a_damaged_file_of_weights_is_refused(tmp_path):
    """A bit of any byte of the header, of some bytes of the tensors, zeros, and tensors of other weights."""
    path, other = tmp_path / "ema.safetensors", tmp_path / "other.safetensors"
    model = random_sit()
    save_model(model, path, step="7")
    good = path.read_bytes()
    start = 8 + int.from_bytes(good[:8], "little")
    save_model(random_sit(seed=1), other, step="7")
    damaged = [good[:start] + other.read_bytes()[start:], good[: len(good) // 2].ljust(len(good), b"\0")]
    name = good.index(b"sit_rl_sha256")  # without this name the file is one without a hash, and its tensors are right
    for i in [*range(0, start, 3), *range(start, len(good), 1999)]:
        if i not in range(name, name + len("sit_rl_sha256")):
            damaged.append(good[:i] + bytes([good[i] ^ 1 << i % 8]) + good[i + 1 :])
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match="ema.safetensors (is damaged|cannot be read)"):
            load_model(path)
    path.write_bytes(good)
    assert torch.equal(load_model(path).pos_embed, model.pos_embed)
    with safe_open(path, "pt") as file:
        save_file(model.state_dict(), other, file.metadata() | {"step": "8"})
    with pytest.raises(ValueError, match="another program has changed it.*without the metadata entry sit_rl_sha256"):
        load_model(other)


def test_convert_command(tmp_path, capsys):
    model = random_sit(SiTConfig(**{**SMALL.to_dict(), "width": 144, "heads": 2}))
    args = argparse.Namespace(model="DiT-XL/2")
    torch.save({"model": model.state_dict(), "ema": model.state_dict(), "args": args}, tmp_path / "a.pt")
    convert.main([str(tmp_path / "a.pt"), str(tmp_path / "b.safetensors"), "--weights", "model"])
    assert "DiT-custom, 0.9M parameters, width 144" in capsys.readouterr().out
    convert.main([str(tmp_path / "b.safetensors"), str(tmp_path / "c.pt")])
    bare = torch.load(tmp_path / "c.pt", weights_only=True)
    assert list(bare) == list(model.state_dict())
    assert all(torch.equal(bare[key], value) for key, value in model.state_dict().items())
    assert type(load_model(tmp_path / "c.pt")) is SiT  # a bare state dict says nothing of itself
    for source, target, message in (("a.pt", "d.npz", "must end in"), ("none.pt", "d.pt", "does not exist")):
        with pytest.raises(SystemExit):
            convert.main([str(tmp_path / source), str(tmp_path / target)])
        assert message in capsys.readouterr().err


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return (print, ("this must not run",))


def test_bad_checkpoints_are_named(tmp_path, capsys):
    (tmp_path / "cut.safetensors").write_bytes(b"\x10\0\0\0")
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    wrong = random_sit().state_dict()
    wrong["blocks.1.attn.qkv.weight"] = torch.zeros(3, 3)
    save_file(wrong, tmp_path / "wrong.safetensors")
    torch.save({"ema": Payload()}, tmp_path / "evil.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    whole = random_sit().state_dict()
    torch.save({f"student.{key}": value for key, value in whole.items()}, tmp_path / "wrapped.pt")
    lost = ("attn.proj.bias", "mlp.fc1.bias", "mlp.fc2.bias", "adaLN_modulation.1.bias")
    torch.save({k: v for k, v in whole.items() if k not in [f"blocks.0.{x}" for x in lost]}, tmp_path / "parts.pt")
    for name, message in {
        "missing.pt": "does not exist",
        "cut.safetensors": "cannot be read as safetensors",
        "other.safetensors": "no tensor 'x_embedder.proj.weight'",
        "wrong.safetensors": r"blocks.1.attn.qkv.weight is 3×3, not 144×48, where its other .* choose another file$",
        "parts.pt": r"blocks.0.attn.proj.bias is missing, blocks.0.mlp.fc1.bias is missing, .* is missing and 1 more,",
        "wrapped.pt": "no tensor 'x_embedder.proj.weight', and begins with 'student.pos_embed'; choose another file",
        "evil.pt": r"cannot be read as a file of tensors only \([^()]*nsupported [^()]*\); re-save",
        "list.pt": "holds a list",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            load_model(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    assert "must not run" not in capsys.readouterr().out
