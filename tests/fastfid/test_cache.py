"""The cache of features: found again by content, whole after any interruption, and never the cause of a failure."""

import os
import shutil
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import fastfid.features.extraction as extraction
from fastfid import FeatureExtractor, FeatureMoments, open_images
from fastfid.features.cache import FeatureCache
from fastfid.features.extraction import extract
from fastfid.runtime.cache_folder import cache_folder

SHARD = 8  # images of a shard here, so that small sets have several


class Counting(nn.Module):
    """Mean, deviation and a corner of every image: features [n, 3]; counts the images it has seen."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))
        self.seen = 0
        self.stop_after = None

    def forward(self, x):
        if self.stop_after is not None and self.seen >= self.stop_after:
            raise KeyboardInterrupt
        self.seen += len(x)
        flat = x.flatten(1)
        return torch.stack([flat.mean(1), flat.std(1), flat[:, 0]], dim=1) * self.scale


def extractor(scale=1.0, **options):
    module = Counting()
    nn.init.constant_(module.scale, scale)
    made = FeatureExtractor.from_module(module, 3, name="counting", **options)
    return made, module


@pytest.fixture(autouse=True)
def small_shards(monkeypatch, tmp_path):
    monkeypatch.setattr(extraction, "SHARD_IMAGES", SHARD)
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))


def write_images(folder, n=20, seed=0):
    folder.mkdir()
    pixels = np.random.default_rng(seed).integers(0, 256, (n, 6, 5), dtype=np.uint8)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{i:03}.png")
    return folder


def run(source, made, cache=True, **options):
    (found,) = extract(open_images(source), [made], FeatureCache() if cache else None, **options)
    return found


def test_second_run_extracts_nothing(tmp_path):
    folder = write_images(tmp_path / "a")
    made, module = extractor()
    first = run(folder, made)
    assert module.seen == 20 and len(list((tmp_path / "cache").rglob("*.npz"))) == 3
    second = run(folder, made)
    assert module.seen == 20 and torch.equal(second.outputs["features"], first.outputs["features"])
    assert second.names == first.names and second.source_sha256 == first.source_sha256
    assert second.indices == list(range(20))
    plain = run(folder, made, cache=False)
    assert module.seen == 40 and torch.equal(plain.outputs["features"], first.outputs["features"])


def test_key_is_content_not_path(tmp_path):
    folder = write_images(tmp_path / "a")
    made, module = extractor()
    first = run(folder, made)
    shutil.copytree(folder, tmp_path / "moved")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in folder.iterdir():
            archive.write(path, path.name)
    for same in (tmp_path / "moved", tmp_path / "a.zip"):
        assert run(same, made).source_sha256 == first.source_sha256
    assert module.seen == 20
    Image.fromarray(np.zeros((6, 5), np.uint8)).save(tmp_path / "moved" / "019.png")  # one file of the last shard
    changed = run(tmp_path / "moved", made)
    assert module.seen == 24 and changed.source_sha256 != first.source_sha256
    assert torch.equal(changed.outputs["features"][:16], first.outputs["features"][:16])
    assert changed.outputs["features"][19, 0] == -1  # black


def test_another_network_or_preprocessing_has_its_own_shards(tmp_path):
    folder = write_images(tmp_path / "a")
    run(folder, extractor()[0])
    for made, module in (extractor(2.0), extractor(prepare=lambda x: x.float(), preprocessing="raw")):
        run(folder, made)
        assert module.seen == 20


def test_interruption_leaves_a_usable_cache(tmp_path):
    folder = write_images(tmp_path / "a", 40)
    made, module = extractor()
    module.stop_after = 16
    with pytest.raises(KeyboardInterrupt):
        run(folder, made)
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2
    again, fresh = extractor()
    resumed = run(folder, again)
    assert fresh.seen == 24  # of 40: two shards of 8 were kept
    assert torch.equal(resumed.outputs["features"], run(folder, extractor()[0], cache=False).outputs["features"])


def test_a_late_bad_image_loses_nothing(tmp_path):
    folder = write_images(tmp_path / "a", 20)
    (folder / "018.png").write_bytes(b"damaged")
    made, module = extractor()
    with pytest.raises(ValueError, match="018.png in .* cannot be read as an 8-bit image"):
        run(folder, made)
    assert module.seen == 16
    (folder / "018.png").unlink()
    assert len(run(folder, made).names) == 19 and module.seen == 19


def test_the_first_of_several_bad_images_is_named(tmp_path):
    folder = write_images(tmp_path / "a", 30)
    for name in ("003.png", "012.png", "013.png", "029.png"):
        (folder / name).write_bytes(b"damaged")
    with pytest.raises(ValueError, match="003.png in"):
        run(folder, extractor()[0])
    floats = torch.rand(20, 1, 6, 5)
    floats[17] = 7  # arrays fail while they are read, a block ahead of the network
    made, module = extractor()
    with pytest.raises(ValueError, match="values from .* to 7 in images 16 to 19"):
        run_array(floats, made)
    assert module.seen == 16  # and the block before was still worked through and kept
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2


def run_array(floats, made):
    extract(open_images(floats, value_range=(0, 1)), [made], FeatureCache())


def test_skipped_images_are_counted_and_their_shard_not_cached(tmp_path):
    folder = write_images(tmp_path / "a", 20)
    (folder / "003.png").write_bytes(b"damaged")
    made, module = extractor()
    for seen in (19, 26):  # the first shard's seven good images are extracted again
        source = open_images(folder, skip_corrupt=True)
        (found,) = extract(source, [made], FeatureCache())
        assert module.seen == seen and len(found.outputs["features"]) == 19
        assert found.indices == [i for i in range(20) if i != 3] and found.names[3] == "004.png"
        assert len(source.skipped) == 1 and "003.png in" in source.skipped[0]


def test_mixed_sizes_are_named_even_when_cached(tmp_path):
    made, _ = extractor()
    folder = write_images(tmp_path / "a", 8)
    other = tmp_path / "b"
    other.mkdir()
    for i in range(8):
        Image.fromarray(np.full((9, 7), i, np.uint8)).save(other / f"{i + 8:03}.png")
    run(folder, made), run(other, made)
    shutil.copytree(other, folder, dirs_exist_ok=True)
    with pytest.raises(ValueError, match="008.png in .* is 7x9 pixels, 000.png is 5x6; resize all images"):
        run(folder, made)


def test_damaged_shards_are_made_again(tmp_path):
    folder = write_images(tmp_path / "a")
    made, module = extractor()
    first = run(folder, made)
    for path in (tmp_path / "cache").rglob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    assert torch.equal(run(folder, made).outputs["features"], first.outputs["features"]) and module.seen == 40
    run(folder, made)
    assert module.seen == 40


def test_a_shard_of_other_images_is_made_again(tmp_path):
    """It is a whole file of the right shape; without its key in the hash its features were taken."""
    folder = write_images(tmp_path / "a")
    made, module = extractor()
    first = run(folder, made)
    sizes = [(np.load(path)["features"].shape, path) for path in sorted((tmp_path / "cache").rglob("*.npz"))]
    (_, one), (_, other) = [pair for pair in sizes if pair[0] == (SHARD, 3)]
    one.write_bytes(other.read_bytes())
    assert torch.equal(run(folder, made).outputs["features"], first.outputs["features"])
    assert module.seen == 20 + SHARD


def test_concurrent_runs_agree(tmp_path):
    folder = write_images(tmp_path / "a", 64)
    results, failures = [], []

    def work():
        try:
            results.append(run(folder, extractor()[0]).outputs["features"])
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work) for _ in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not failures and len(results) == 4
    assert all(torch.equal(result, results[0]) for result in results)
    files = [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert len(files) == 8 and all(path.suffix == ".npz" for path in files)  # no temporary file stays


def test_a_cache_that_cannot_be_written_is_told_and_survived(tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the folder should be")
    cache = FeatureCache()
    made, module = extractor()
    (found,) = extract(open_images(write_images(tmp_path / "a")), [made], cache)
    assert len(found.outputs["features"]) == 20 and "features are not cached any more" in cache.problem


def test_features_that_are_not_finite_name_the_image(tmp_path):
    folder = write_images(tmp_path / "a", 20)
    made = FeatureExtractor.from_module(Poisoned(), 3, name="poisoned")
    with pytest.raises(ValueError, match="the features of 013.png in .* by poisoned hold NaN or infinity"):
        run(folder, made)


class Poisoned(nn.Module):
    def __init__(self):
        super().__init__()
        self.seen = 0

    def forward(self, x):
        features = x.flatten(1)[:, :3].clone()
        for i in range(len(x)):
            if self.seen + i == 13:
                features[i, 1] = torch.nan
        self.seen += len(x)
        return features


def test_moments_alone_equal_those_of_kept_features(tmp_path):
    folder = write_images(tmp_path / "a", 30)
    made, _ = extractor()
    kept, streamed = run(folder, made), run(folder, made, accumulate=FeatureMoments.empty)
    moments = streamed.accumulated["features"]
    assert streamed.outputs == kept.accumulated == {} and moments.count == 30
    expected = FeatureMoments.from_features(kept.outputs["features"])
    torch.testing.assert_close(moments.cov, expected.cov, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 100])
def test_batch_size_changes_nothing(tmp_path, size):
    folder = write_images(tmp_path / "a", 20)
    made, _ = extractor()
    whole = run(folder, made, cache=False)
    assert torch.equal(run(folder, made, cache=False, batch_size=size).outputs["features"], whole.outputs["features"])


def test_folder_of_the_cache(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("FASTFID_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_folder() == tmp_path / "fastfid"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "fastfid"


def test_progress_shows_itself_when_late(tmp_path, monkeypatch, capsys):
    folder = write_images(tmp_path / "a", 20)
    made, _ = extractor()
    run(folder, made, cache=False, progress=True)
    assert capsys.readouterr().err == ""  # over in less than two seconds
    monkeypatch.setattr(extraction, "PROGRESS_DELAY", 0.0)
    run(folder, made, cache=False, progress=True)
    assert "20/20" in capsys.readouterr().err


SHARDS = {
    "text": {"features": np.array(["a"] * 4), "image_shape": np.array([3, 8, 8])},
    "integers": {"features": np.zeros((4, 6), int), "image_shape": np.array([3, 8, 8])},
    "a scalar shape": {"features": np.zeros((4, 6), np.float32), "image_shape": np.array(3)},
    "a shape of text": {"features": np.zeros((4, 6), np.float32), "image_shape": np.array(["a", "b", "c"])},
    "a scalar beside": {"features": np.zeros((4, 6), np.float32), "image_shape": np.array([3, 8, 8]), "x": np.array(1)},
    "nothing": {},
}


@pytest.mark.parametrize("kind", SHARDS)
def test_shards_of_another_kind_are_made_again(tmp_path, kind):
    """Whatever lies in a shard's place is read as absent and replaced."""
    extractor, cache = FeatureExtractor.from_module(nn.Flatten(), 6, name="f"), FeatureCache(tmp_path)
    path = cache.path(extractor, "d")
    path.parent.mkdir(parents=True)
    np.savez(path, **SHARDS[kind])
    assert cache.load(extractor, "d", 4) is None and cache.hits == 0
    features = torch.arange(24.0).reshape(4, 6)
    cache.save(extractor, "d", {"features": features}, (3, 8, 8))
    held, shape = cache.load(extractor, "d", 4)
    assert torch.equal(held["features"], features) and shape == (3, 8, 8)


def test_a_pipe_in_the_place_of_a_shard_is_not_waited_for(tmp_path):
    extractor, cache = FeatureExtractor.from_module(nn.Flatten(), 6, name="f"), FeatureCache(tmp_path)
    cache.path(extractor, "d").parent.mkdir(parents=True)
    os.mkfifo(cache.path(extractor, "d"))
    assert cache.load(extractor, "d", 4) is None
