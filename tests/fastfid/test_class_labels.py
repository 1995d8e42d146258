"""Classes from labels.npy, and names for numbered classes."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from fastfid import evaluate, open_images
from fastfid.evaluation.class_names import names_of_classes
from tests.support.hostile_files import npy
from tests.support.image_sets import run
from tests.support.small_network import pixels, small, write_images

pytestmark = pytest.mark.usefixtures("own_cache")

NAMES = ["bag", "boot"]


@pytest.fixture
def sampled(tmp_path):
    """A folder as `sit_rl.sample` writes it, and class folders of other images."""
    numbered = write_images(tmp_path / "numbered", pixels(40, 1))
    np.save(numbered / "labels.npy", np.arange(40) % 2)
    (tmp_path / "named").mkdir()
    for i, name in enumerate(NAMES):
        write_images(tmp_path / "named" / name, pixels(20, 2 + i))
    return tmp_path


def test_labels_beside_the_images_are_their_classes(sampled):
    images = open_images(sampled / "numbered")
    assert images.labels(0, 40) == ["0", "1"] * 20 and len(images) == 40 and images.notes == []


@pytest.mark.parametrize(
    ("labels", "reason"),
    [
        (np.arange(39), "its shape is (39,), and there are 40 images"),
        (np.zeros((40, 2)), "its shape is (40, 2)"),
        (None, "labels.npy is not read as classes: "),
    ],
)
def test_labels_that_do_not_fit_are_not_taken_and_it_is_said(sampled, labels, reason):
    path = sampled / "numbered" / "labels.npy"
    path.write_bytes(b"no array") if labels is None else np.save(path, labels)
    images = open_images(sampled / "numbered")
    assert images.labels(0, 40) is None and reason in images.notes[0]


@pytest.mark.parametrize(
    "kind", ["pipe", "device", "open bracket", "no bytes", "more than memory", "characters", "npz"]
)
def test_a_file_of_labels_may_be_anything(sampled, kind):
    """A reader of NumPy would wait for a pipe, end the process, or raise what nobody expects."""
    path = sampled / "numbered" / "labels.npy"
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "characters":
        np.save(path, np.full(40, 0x110000, np.uint32).view("<U1"))
    elif kind == "npz":
        with path.open("wb") as file:
            np.savez(file, np.arange(40))
    else:
        shapes = {"no bytes": ("(40,)", "'|S0'"), "more than memory": ("(99999999999999,)", "'<i8'")}
        path.write_bytes(npy(*shapes.get(kind, ("((((", "'<i8'"))))
    images = open_images(sampled / "numbered")
    assert images.labels(0, 40) is None and f"{path} is not read as classes: " in images.notes[0]


@pytest.mark.parametrize("name", ["labels", "arr_1"])
def test_labels_of_another_number_in_an_archive_are_said(tmp_path, name):
    np.savez(tmp_path / "x.npz", arr_0=pixels(40, 1), **{name: np.arange(39)})
    images = open_images(tmp_path / "x.npz")
    told = f"{tmp_path / 'x.npz'} holds 39 labels and 40 images; the labels are not read as classes"
    assert images.labels(0, 40) is None and images.notes == [told]
    np.savez(tmp_path / "y.npz", arr_0=pixels(40, 1), **{name: np.eye(40)})  # one-hot rows
    told = f"{tmp_path / 'y.npz'} holds labels of shape (40, 40); a class is one number or name, so they are not read"
    assert open_images(tmp_path / "y.npz").notes == [told]
    np.savez(tmp_path / "z.npz", arr_0=pixels(40, 1), **{name: np.ones((3, 4))})  # something else
    assert open_images(tmp_path / "z.npz").notes == []


def test_what_was_said_of_labels_stays_when_images_are_read(tmp_path):
    folder = write_images(tmp_path / "a", pixels(2, 1))
    frames = [Image.fromarray(np.full((12, 12), level, np.uint8)) for level in (0, 90)]
    frames[0].save(folder / "9.tif", save_all=True, append_images=frames[1:])
    np.save(folder / "labels.npy", np.arange(5))
    images = open_images(folder)
    assert [tuple(batch.shape)[0] for batch in images.batches(3)] == [3]
    assert "is not read as classes" in images.notes[0] and "several frames" in images.notes[1]


def test_labels_need_names_in_the_order_of_their_numbers(tmp_path):
    folder = write_images(tmp_path / "a", pixels(11, 1))
    for i in range(11):
        (folder / f"{i:04}.png").rename(folder / f"{i}.png")  # 10.png sorts before 2.png
    np.save(folder / "labels.npy", np.arange(11))
    images = open_images(folder)
    assert images.labels(0, 11) is None and "is not that of their numbers" in images.notes[0]


@pytest.mark.parametrize("kind", ["list", "object", "text"])
def test_a_map_brings_numbers_and_names_together(sampled, capsys, kind):
    content = {"list": json.dumps(NAMES), "object": json.dumps(dict(enumerate(NAMES))), "text": "\n".join(NAMES)}[kind]
    path = sampled / ("names.txt" if kind == "text" else "names.json")
    path.write_text(content)
    sides = sampled / "numbered", sampled / "named"
    options = "--metrics", "precision,recall", "--network", "fashion-a", "--nearest-k", 3, "--json"
    status, out, _ = run(capsys, "eval", *sides, *options)
    assert status == 0 and json.loads(out)["classes"] == []
    assert any("--class-names" in left["reason"] for left in json.loads(out)["left_out"])
    status, out, _ = run(capsys, "eval", *sides, *options, "--class-names", path)
    assert status == 0
    assert {(entry["class"], entry["samples"], entry["real"]) for entry in json.loads(out)["classes"]} == {
        ("bag", 20, 20), ("boot", 20, 20)
    }  # fmt: skip


def test_names_in_python_are_a_list_or_a_mapping():
    images = pixels(20, 1)
    sides = (images, np.arange(20) % 2), (pixels(20, 2), [NAMES[i % 2] for i in range(20)])
    for names in (NAMES, {"0": "bag", 1: "boot"}):
        found = evaluate(*sides, metrics=["precision"], features=small()[0], nearest_k=3, class_names=names)
        assert {entry["class"] for entry in found.classes} == set(NAMES)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{", "cannot be read as names of classes"),
        ("3", "holds no names of classes"),
        ('["a", 1]', "holds no names"),
        ('["a", "a"]', "'a'"),
    ],
)
def test_other_files_are_one_sentence_before_any_work(tmp_path, capsys, content, sentence):
    path = tmp_path / "names.json"
    path.write_text(content)
    status, _, err = run(capsys, "eval", "no-a", "no-b", "--class-names", path)
    assert status == 2 and sentence in err and err.count("\n") == 1
    with pytest.raises(FileNotFoundError, match="does not exist"):
        names_of_classes(tmp_path / "none.txt")
