"""Folders of images of several sizes: resized one by one where the protocol does so, refused elsewhere."""

import pytest
import torch

from fastfid import evaluate, feature_extractor, open_images
from fastfid.features.cache import FeatureCache
from fastfid.features.extraction import MIXED, extract
from fastfid.features.extractor import FeatureExtractor
from tests.support.image_sets import run
from tests.support.pictures import encoded, picture, write

pytestmark = pytest.mark.usefixtures("own_cache")

# Sides and channels in the order of names: two of the same shape apart, one grey among colour.
SHAPES = [(20, 30, 3), (28, 28, 1), (20, 30, 3), (9, 50, 3), (28, 28, 1), (31, 31, 3)]


@pytest.fixture
def mixed(tmp_path):
    """A folder of images of several shapes, and what is in it, in order."""
    images = [picture(seed, *shape) for seed, shape in enumerate(SHAPES)]
    write(tmp_path / "mixed", {f"{i}.png": encoded(image) for i, image in enumerate(images)})
    return tmp_path / "mixed", [torch.from_numpy(image).permute(2, 0, 1) for image in images]


def test_each_image_is_prepared_on_its_own_and_keeps_its_place(mixed):
    folder, images = mixed
    network, cache = feature_extractor("fashion-a"), FeatureCache()
    alone = torch.cat([network(image[None]) for image in images])
    for hits in (0, 1):
        (found,) = extract(open_images(folder), [network], cache, mixed_sizes=True)
        torch.testing.assert_close(found.outputs["features"], alone, rtol=1e-5, atol=1e-5)  # other batches round apart
        assert found.shape == MIXED and cache.hits == hits
    with pytest.raises(ValueError, match="2.png|1.png"):  # the cached shard serves no run that wants one size
        extract(open_images(folder), [network], cache)


def test_images_of_one_size_are_the_same_bits(tmp_path):
    folder = write(tmp_path / "one", {f"{i}.png": encoded(picture(i, 28, 28, 1)) for i in range(5)})
    network = feature_extractor("fashion-a")
    (plain,), (mixed) = (
        extract(open_images(folder), [network]),
        extract(open_images(folder), [network], mixed_sizes=True),
    )
    assert torch.equal(plain.outputs["features"], mixed[0].outputs["features"]) and mixed[0].shape == (1, 28, 28)


def test_protocols_that_resize_each_image_take_such_folders(mixed, capsys):
    folder, _ = mixed
    status, _, err = run(capsys, folder, folder)
    assert status == 2 and "use a protocol that resizes each image on its own, such as clean (--protocol clean)" in err
    status, _, err = run(capsys, folder, folder, "--protocol", "pytorch-fid", "--network", "fashion-a")
    assert status == 2 and "0.png is 30x20" in err
    status, out, err = run(capsys, folder, folder, "--protocol", "clean", "--network", "fashion-a")
    assert status == 0 and "images of several sizes" in err
    assert abs(float(out.split()[-1])) < 1e-4


def test_unreadable_images_are_left_out_of_a_mixed_folder(mixed):
    folder, images = mixed
    (folder / "2.png").write_bytes(b"no image")
    network = feature_extractor("fashion-a")
    with pytest.raises(ValueError, match="2.png in .* cannot be read"):
        extract(open_images(folder), [network], mixed_sizes=True)
    (found,) = extract(open_images(folder, skip_corrupt=True), [network], mixed_sizes=True)
    assert found.indices == [0, 1, 3, 4, 5] and len(found.outputs["features"]) == 5


def test_a_network_that_does_not_resize_says_so(mixed):
    folder, _ = mixed
    plain = FeatureExtractor.from_module(torch.nn.Flatten(), 4, name="flat")
    with pytest.raises(ValueError, match="flat takes images of one size"):
        evaluate(str(folder), str(folder), features=plain, protocol="clean")
