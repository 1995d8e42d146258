"""A user's own images: every source gives the same set, and near-duplicates stay on one side of the split."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from sit_rl.components.near_duplicates import groups, near_any
from sit_rl.components.own_images import (
    class_order,
    numbers_of,
    open_source,
    prepare,
    split_by_fraction,
    split_by_source,
)
from tests.support.own_pictures import as_npz, as_webdataset, as_zip, class_folders, drawing
from tests.support.pictures import encoded, write

COUNT = 24
SOURCES = {"zip": as_zip, "tar": as_webdataset, "npz": as_npz}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return class_folders(tmp_path_factory.mktemp("own") / "folder", COUNT)


@pytest.mark.parametrize("form", SOURCES)
def test_every_source_gives_the_images_and_classes_of_the_folder(folder, tmp_path, form):
    expected = open_source("--images", folder)
    found = open_source("--images", SOURCES[form](tmp_path / f"x.{form}", COUNT))
    assert found.labels == expected.labels and len(found) == COUNT
    assert torch.equal(prepare(found, 16, "centre"), prepare(expected, 16, "centre"))
    assert numbers_of(found, class_order(found.labels), True).tolist() == [0] * (COUNT // 2) + [1] * (COUNT // 2)


def test_a_flat_folder_has_no_labels(tmp_path):
    source = open_source("--images", write(tmp_path, {f"{i}.png": encoded(drawing(i)) for i in range(3)}))
    assert source.labels is None and numbers_of(source, class_order(None), False).tolist() == [0, 0, 0]


def test_mixed_sizes_become_squares_by_the_crop_that_was_asked_for(tmp_path):
    wide = np.zeros((4, 8, 3), np.uint8)
    wide[:, 2:6] = 200  # the middle square
    write(tmp_path, {"a.png": encoded(wide), "b.png": encoded(np.full((4, 4, 3), 200, np.uint8))})
    source = open_source("--images", tmp_path)
    assert (prepare(source, 4, "centre", 3) == 200).all()
    padded = prepare(source, 8, "pad", 3)[0]
    assert (padded[:, :2] == 255).all() and (padded[:, 2:6, 2:6] == 200).all() and (padded[:, 6:] == 255).all()
    squeezed = prepare(source, 4, "squeeze", 3)[0]
    assert squeezed[0, 0, 0] < 60 and squeezed[0, 0, 1] > 140


def test_images_of_several_frames_are_said(tmp_path, capsys):
    for i in range(2):
        frames = [Image.fromarray(drawing(i)), Image.fromarray(drawing(i + 2))]
        buffer = io.BytesIO()
        frames[0].save(buffer, "TIFF", save_all=True, append_images=frames[1:])
        write(tmp_path, {f"{i}.tif": buffer.getvalue(), f"{i}.png": encoded(drawing(i))})
    prepare(open_source("--images", tmp_path), 16, "centre")
    assert (
        f"note: of 2 images with several frames in {tmp_path} the first frame is read: 0.tif" in capsys.readouterr().out
    )


def test_a_line_of_pixels_is_not_padded_to_gigabytes(tmp_path):
    """A PNG of some hundred bytes; its square would have 400 million pixels."""
    Image.new("RGB", (20_000, 1), (9, 9, 9)).save(tmp_path / "line.png")
    source = open_source("--images", tmp_path)
    with pytest.raises(
        ValueError, match="line.png is 20000x1 pixels, and with margins its square would have more than"
    ):
        prepare(source, 4, "pad")
    assert (prepare(source, 4, "squeeze") == 9).all()


def test_colour_images_without_colour_are_made_grey(tmp_path):
    grey = np.repeat(drawing(0)[..., :1], 3, axis=2)
    write(tmp_path, {"a.png": encoded(grey), "b.png": encoded(drawing(1)[..., :1])})
    source = open_source("--images", tmp_path)
    assert prepare(source, 16, "centre").shape == (2, 1, 16, 16)
    write(tmp_path, {"c.png": encoded(drawing(2))})
    assert prepare(open_source("--images", tmp_path), 16, "centre").shape == (3, 3, 16, 16)


def test_classes_are_ordered_by_number_where_they_are_numbers():
    assert class_order(["10", "9", "10"]) == ("9", "10") and class_order(["b", "a10", "a9"]) == ("a10", "a9", "b")


# --- near-duplicates -------------------------------------------------------------------------------------------------


def recompressed(pixels, shift=0):
    """The picture after JPEG, moved by some pixels."""
    buffer = io.BytesIO()
    Image.fromarray(np.roll(pixels, shift, axis=1)).save(buffer, "JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(buffer))


def stack(pictures):
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2)


def test_recompressed_copies_are_near_duplicates_and_other_drawings_are_not():
    pictures = [drawing(seed, 32) for seed in range(60)]
    number = groups(stack(pictures + [recompressed(picture) for picture in pictures[:10]]))
    assert (number[60:] == number[:10]).all() and len(set(number.tolist())) == 60
    near = near_any(stack([recompressed(pictures[3]), drawing(99, 32)]), stack(pictures))
    assert near.tolist() == [True, False]


def test_the_rule_does_not_depend_on_contrast():
    pictures = stack([drawing(seed, 32) for seed in range(40)]).float()
    pale = (118 + pictures / 25).round().to(torch.uint8)  # ten grey levels in all
    assert len(set(groups(pale).tolist())) == 40


def test_a_group_of_near_duplicates_stays_on_one_side(tmp_path):
    folder = class_folders(tmp_path, 240)
    write(folder, {f"disc/{seed:04}-copy.png": encoded(recompressed(drawing(seed))) for seed in range(0, 240, 4)})
    source = open_source("--images", folder)
    pixels = prepare(source, 16, "centre")
    own = split_by_fraction(source, pixels, 0.2, 0, labelled=True)
    held = set(own.split.heldout)
    pairs = [(name, name.replace("-copy", "")) for name in source.names if "-copy" in name]
    assert len(pairs) == 60 and all((copy in held) == (original in held) for copy, original in pairs)
    assert any(copy in held for copy, _ in pairs)
    assert abs(len(own.heldout) - 60) <= 2 and len(own.train) + len(own.heldout) == 300
    assert "groups of near-duplicates" in own.split.near_duplicates and own.classes == ("disc", "square")
    again = split_by_fraction(source, pixels, 0.2, 0, labelled=True)
    assert again.split == own.split and split_by_fraction(source, pixels, 0.2, 1, True).split != own.split


def test_a_held_out_folder_takes_its_near_duplicates_from_the_training(tmp_path):
    source = open_source("--images", class_folders(tmp_path / "train", 240))
    others = class_folders(tmp_path / "heldout", 60, first=1000)
    write(others, {f"disc/{seed}.png": encoded(recompressed(drawing(seed))) for seed in (0, 2, 4)})
    other = open_source("--heldout", others)
    parts = [prepare(each, 16, "centre") for each in (source, other)]
    own = split_by_source(source, parts[0], other, parts[1], labelled=True)
    assert {"disc/0000.png", "disc/0002.png", "disc/0004.png"} <= set(own.split.left_out)
    left_out = len(own.split.left_out)  # drawings may also be alike by chance
    assert left_out <= 6 and len(own.train) == 240 - left_out and len(own.heldout) == 63
    assert own.split.near_duplicates.endswith(f"of held-out images: {left_out} images")
