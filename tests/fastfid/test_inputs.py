"""Everything that may stand for a set of images gives the same numbers; labels follow; streams are read once."""

import io
import json
import weakref
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, TensorDataset

from fastfid import FeatureExtractor, evaluate, open_images, prdc
from fastfid.evaluation.evaluate import statistics_of
from fastfid.evaluation.intervals import wilson_interval
from fastfid.features import extraction
from fastfid.images.source import class_names

SHARD = 16  # images of a shard here, so that small sets have several


@pytest.fixture(autouse=True)
def small_shards_and_own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(extraction, "SHARD_IMAGES", SHARD)
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))


def pixels(n, seed, side=8):
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def first_rows(module=None):
    """Features that are pixels: exact in float32 whatever the batches are."""
    return FeatureExtractor.from_module(module or nn.Flatten(), 8, lambda x: x[:, 0, 0].float(), name="pixels")


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_tree(folder, images, name=lambda i: f"{i:03}.png"):
    for i, image in enumerate(images):
        path = folder / name(i)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(image))
    return folder


def pack(path, folder):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


FAKE, REAL = pixels(70, 1), pixels(90, 2)
CHANNELS_FIRST = torch.from_numpy(FAKE).permute(0, 3, 1, 2).contiguous()


def batches(images=CHANNELS_FIRST, sizes=(5, 30, 1, 34), labels=None):
    start = 0
    for size in sizes:
        part = images[start : start + size]
        yield part if labels is None else (part, labels[start : start + size])
        start += size


def sources(folder):
    """Name → the same 70 images in every form."""
    nested = write_tree(folder / "nested", FAKE, lambda i: f"a/{i // 10}/b/{i:03}.png")
    flat = write_tree(folder / "flat", FAKE)
    np.savez(folder / "adm.npz", FAKE)  # arr_0, as ADM's sampler writes it
    np.savez(folder / "adm_labels.npz", FAKE, np.arange(70) % 3)
    np.savez(folder / "ours.npz", images=CHANNELS_FIRST.numpy())
    np.save(folder / "x.npy", FAKE)
    dataset = TensorDataset(CHANNELS_FIRST, torch.arange(70))
    unit = CHANNELS_FIRST.double() / 255
    return {
        "flat": flat,
        "nested": str(nested),
        "zip": pack(folder / "x.zip", flat),
        "nested zip": pack(folder / "y.zip", nested),
        "adm npz": folder / "adm.npz",
        "adm npz with labels": folder / "adm_labels.npz",
        "npz": folder / "ours.npz",
        "npy": folder / "x.npy",
        "source": open_images(flat),
        "tensor": CHANNELS_FIRST,
        "array": FAKE,
        "pair": (FAKE, np.arange(70) % 3),
        "loader": DataLoader(dataset, batch_size=13),
        "loader of workers": DataLoader(dataset, batch_size=13, num_workers=1),
        "list of batches": list(batches()),
        "generator": batches(),
        "generator of arrays": iter(np.array_split(FAKE, 7)),
        "generator of pairs": batches(labels=list(range(70))),
        "generator of dicts": ({"pixel_values": x, "label": y} for x, y in batches(labels=torch.arange(70))),
        "list of one-tuples": [(x,) for x in batches()],
        "floats": unit,
        "float batches": (batch.half() for batch in batches(unit)),
    }


def test_every_form_of_the_same_images_gives_the_same_numbers(tmp_path):
    expected = evaluate(FAKE, REAL, features=first_rows())
    digests = set()
    for name, source in sources(tmp_path).items():
        value_range = (0, 1) if "float" in name else None
        result = evaluate(source, REAL, features=first_rows(), value_range=value_range, cache=False)
        assert [(s.metric, s.value, s.interval) for s in result.scores] == [
            (s.metric, s.value, s.interval) for s in expected.scores
        ], name
        digests.add(result.provenance["samples"]["source_sha256"])
        json.loads(result.to_json())
    assert len(digests) == 2  # of the encoded files, and of the pixels


def test_features_and_statistics_files(tmp_path):
    features = torch.from_numpy(FAKE[:, 0, :, 0].astype(np.float32))
    np.save(tmp_path / "f.npy", features.numpy())
    np.savez(tmp_path / "f.npz", features.numpy())
    np.savez(tmp_path / "clean.npz", feats=features.numpy())
    np.savez(tmp_path / "dgm.npz", reps=features.numpy(), model="dinov2")
    torch.save(features, tmp_path / "fidelity.pt")
    expected = evaluate(features, REAL[:, 0, :, 0].astype(np.float32), metrics=["fd", "kid", "recall"])
    for name in ("f.npy", "f.npz", "clean.npz", "dgm.npz", "fidelity.pt"):
        result = evaluate(tmp_path / name, REAL[:, 0, :, 0].astype(np.float32), metrics=["fd", "kid", "recall"])
        assert [s.value for s in result.scores] == [s.value for s in expected.scores], name


def test_statistics_of_a_stream():
    streamed = statistics_of(batches(), features=first_rows())
    kept = statistics_of(CHANNELS_FIRST, features=first_rows(), keep_features=True)
    torch.testing.assert_close(streamed.moments.cov, kept.moments.cov, rtol=1e-12, atol=0)
    assert streamed.features is None and len(kept.features) == streamed.count == 70


# --- streams -----------------------------------------------------------------------------------------------------


def test_streams_are_read_once_and_hold_one_block():
    given = []

    def many():
        for _ in range(40):
            batch = CHANNELS_FIRST[:5].clone()
            given.append(weakref.ref(batch))
            yield batch

    source, alive = open_images(many()), []
    for block in source.blocks(SHARD):
        alive.append(sum(batch() is not None for batch in given))
        assert len(block.names) == SHARD or block.start == 192  # 12 blocks and the last 8 of 200 images
    assert len(alive) == 13 and max(alive) <= 2  # the batch that was cut, and the one the generator holds
    with pytest.raises(ValueError, match="was read already, and an iterator gives its images once; make a new one"):
        next(source.blocks(SHARD))
    with pytest.raises(ValueError, match="the iterator was read once, its image 3 is gone"):
        source.image(3)
    with pytest.raises(TypeError, match="known at its end only"):
        len(source)


def test_streams_name_their_images_and_show_no_pictures():
    from fastfid.evaluation.html_report import report_html

    result = evaluate(batches(), iter([REAL]), features=first_rows())
    assert result.sources == {} and result.outliers[0]["hurt"][0]["name"].startswith("image ")
    assert "<img" not in report_html(result)


def test_the_length_of_a_loader_is_expected():
    dataset = TensorDataset(CHANNELS_FIRST)
    assert open_images(DataLoader(dataset, batch_size=10)).expected == 70
    assert open_images(DataLoader(dataset, batch_size=40)).expected == 80  # a bound, for the bar alone
    assert open_images(batches()).expected is None
    assert open_images(FAKE).expected == 70


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize(("count", "ranks"), [(21, 2), (20, 2), (21, 4), (3, 8), (70, 3)])
def test_a_sampler_that_repeats_images_counts_each_once(count, ranks, shuffle):
    """Every rank gets as many images as the others; those it gets a second time are left out, and said."""
    numbered = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 4, 4)
    dataset, found = TensorDataset(numbered, torch.arange(count)), []
    for rank in range(ranks):
        for grouped in (False, True):
            sampler = DistributedSampler(dataset, ranks, rank, shuffle=shuffle)
            options = (
                {"batch_sampler": BatchSampler(sampler, 4, False)} if grouped else {"sampler": sampler, "batch_size": 4}
            )
            source = open_images(DataLoader(dataset, **options))
            blocks = list(source.blocks(5))
            own = [int(image[0, 0, 0]) for block in blocks for image in block.decode(None)[0]]
            assert [int(label) for block in blocks for label in block.labels] == own
            repeated = -count % ranks
            told = f"{repeated} image{'s' * (repeated > 1)} that its DistributedSampler gives a second time"
            assert source.notes == ([f"left out of the iterator: {told}"] if repeated else [])
        found += own
    assert sorted(found) == list(range(count))


@pytest.mark.parametrize(
    ("options", "count"),
    [
        ({"batch_size": 16, "drop_last": True}, 64),
        ({"sampler": RandomSampler(range(70), replacement=True, num_samples=90), "batch_size": 9}, 90),
        ({"sampler": DistributedSampler(range(70), 3, 1, drop_last=True), "batch_size": 9}, 23),
    ],
)
def test_loaders_that_give_other_images_than_their_dataset_holds_are_said(options, count):
    loader = DataLoader(TensorDataset(CHANNELS_FIRST), **options)
    result = evaluate(loader, REAL, features=first_rows(), metrics=["fd"])
    told = f"the samples gave {count} images of a dataset of 70; its sampler chooses them"
    assert told in result.warnings and result.provenance["samples"]["count"] == count
    whole = evaluate(DataLoader(TensorDataset(CHANNELS_FIRST), 13), REAL, features=first_rows(), metrics=["fd"])
    assert not any("of a dataset of" in warning for warning in whole.warnings)


@pytest.mark.parametrize(
    "stream, message",
    [
        (iter([]), "the samples gave no images; an exhausted iterator gives none a second time"),
        (iter([1, 2]), "the samples gave a int; give batches of images as tensors or arrays"),
        (iter([{"pictures": 1}]), "gave a dict of pictures; call the images images"),
        (iter([(1, 2, 3)]), "gave a tuple of 3; give images, or images and labels"),
        (iter([[Image.new("L", (4, 4)), 3]]), "goes through torch.utils.data.DataLoader"),
        (iter([(CHANNELS_FIRST[:4], [0, 1])]), "gave 4 images with 2 labels; give one for each"),
        (batches(CHANNELS_FIRST.float() / 255), "is float32 and does not tell its range; pass value_range="),
        (iter([CHANNELS_FIRST[:4], CHANNELS_FIRST[:4, :, :5]]), "of shape (3, 8, 8), then of (3, 5, 8); resize all"),
        (iter([CHANNELS_FIRST[:4], (CHANNELS_FIRST[:4], [1] * 4)]), "gave labels with some batches only"),
        (iter([CHANNELS_FIRST[:4].int()]), "is int32; images are uint8, or float with a value_range"),
        (iter([CHANNELS_FIRST[:1]]), "holds 1 usable image; a covariance needs at least 2"),
        (iter(CHANNELS_FIRST[:4]), "shape (3, 8, 8), which is one colour image or 3 grey ones; give batches"),
        (iter(FAKE[:4]), "shape (8, 8, 3), which is one colour image or 8 grey ones; give batches"),
        (7, "images are given as a int; pass a path, a tensor, an array or an iterable of batches"),
        ((FAKE, [1, 2]), "the samples holds 70 images and 2 labels; give one for each"),
    ],
)
def test_unfit_streams_are_one_sentence(stream, message):
    with pytest.raises(ValueError) as error:
        evaluate(stream, REAL, features=first_rows())
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_late_bad_batch_loses_nothing(tmp_path):
    good = CHANNELS_FIRST.float() / 255
    bad = good.clone()
    bad[65] = 2
    with pytest.raises(ValueError, match=r"values from 0 to 2 in images 36 to 69, outside value_range=\(0, 1\)"):
        evaluate(batches(bad), REAL, features=first_rows(), value_range=(0, 1))
    assert len(list((tmp_path / "cache").rglob("*.npz"))) == 2  # two whole shards of 16 before the batch from 36
    seen = []
    module = nn.Flatten()
    module.register_forward_hook(lambda *call: seen.append(len(call[2])))
    evaluate(batches(good), REAL, features=first_rows(module), value_range=(0, 1))
    assert sum(seen) == 70 - 32 + 90


# --- labels ------------------------------------------------------------------------------------------------------


def test_labels_of_every_form(tmp_path):
    def labels(source):
        return [label for block in open_images(source).blocks(3) for label in block.labels or ["none"]]

    trees = {
        "cat/0.png": "cat", "dog/x/1.png": "dog", "dog/y/2.png": "dog",
    }  # fmt: skip
    tree = tmp_path / "tree"
    for i, path in enumerate(trees):
        write_tree(tree, [FAKE[i]], lambda _, path=path: path)
    assert labels(tree) == labels(pack(tmp_path / "tree.zip", tree)) == ["cat", "dog", "dog"]
    deep = write_tree(tmp_path / "deep", FAKE[:4], lambda i: f"train/{i % 2}/{i}.png")
    assert labels(deep) == ["0", "0", "1", "1"]  # below the folder they share
    assert labels(write_tree(tmp_path / "one", FAKE[:2], lambda i: f"all/{i}.png")) == ["none"]
    assert labels(write_tree(tmp_path / "part", FAKE[:2], lambda i: ["a/0.png", "1.png"][i])) == ["none"]
    np.savez(tmp_path / "a.npz", FAKE[:3], np.array([2, 0, 1]))
    np.savez(tmp_path / "b.npz", images=FAKE[:3], labels=np.array(["x", "y", "z"]))
    np.savez(tmp_path / "c.npz", FAKE[:3], np.zeros((3, 10)))  # one-hot rows are no list of classes
    found = [labels(tmp_path / f"{name}.npz") for name in "abc"]
    assert found == [["2", "0", "1"], ["x", "y", "z"], ["none"]]
    assert labels((FAKE[:2], torch.tensor([5, 6]))) == ["5", "6"]
    assert class_names(torch.tensor([1.0, 2.0])) == ["1", "2"] and class_names([torch.tensor(3), "a"]) == ["3", "a"]


def classed(n, seed, shift):
    """Images [n, 8, 8] whose first row is a class mean and noise, and their classes 0, 1, 2."""
    rng, classes = np.random.default_rng(seed), np.arange(n) % 3
    images = np.zeros((n, 8, 8), np.uint8)
    images[:, 0] = 60 + 60 * classes[:, None] + rng.normal(0, 12, (n, 8)) + shift * (classes == 1)[:, None]
    return images, classes


def test_precision_and_recall_within_each_class(tmp_path):
    fake, real = classed(150, 1, 15), classed(180, 2, 0)
    tree = tmp_path / "real"
    for i, (image, label) in enumerate(zip(*real, strict=True)):
        write_tree(tree, [image], lambda _, i=i, label=label: f"{label}/{i:03}.png")
    result = evaluate(fake, tree, features=first_rows())
    assert [entry["class"] for entry in result.classes] == ["0", "1", "2"]
    for entry in result.classes:
        a, b = (x[0][x[1] == int(entry["class"]), 0].astype(np.float32) for x in (real, fake))
        expected = prdc(torch.from_numpy(a), torch.from_numpy(b), 5)
        assert {name: entry[name] for name in expected} == expected
        assert (entry["samples"], entry["real"], entry["nearest_k"]) == (50, 60, 5)
        assert entry["precision_interval"] == wilson_interval(expected["precision"], 50)
        assert entry["recall_interval"] == wilson_interval(expected["recall"], 60)
    worst = min(result.classes, key=lambda entry: min(entry["precision"], entry["recall"]))
    assert worst["class"] == "1"  # the shifted one
    table = result.table().splitlines()
    row = next(i for i, line in enumerate(table) if line.startswith("within each class (pixels), k = 5"))
    assert table[row + 1].split() == ["class", "samples", "real", "precision", "recall", "density", "coverage"]
    assert table[row + 2].split()[:3] == ["1", "50", "60"]  # worst first
    assert json.loads(result.to_json())["classes"][0].keys() == {
        "network", "class", "samples", "real", "nearest_k", "inclusive", "precision", "precision_interval",
        "recall", "recall_interval", "density", "coverage",
    }  # fmt: skip
    adm = evaluate(fake, tree, features=first_rows(), protocol="torch-fidelity", metrics=["precision"])
    assert adm.classes[0]["inclusive"] and adm.classes[0]["nearest_k"] == 3
    assert evaluate(fake, tree, features=first_rows(), metrics=["fd"]).classes == []


def test_why_there_are_no_classes():
    def reasons(fake, real):
        result = evaluate(fake, real, features=first_rows(), metrics=["recall"])
        return [left.reason for left in result.left_out if left.metric == "classes"]

    fake, real = classed(60, 1, 0), classed(66, 2, 0)
    assert reasons(fake[0], real[0]) == []
    assert reasons(fake, real[0]) == ["the set of real images has no labels, the samples has"]
    (told,) = reasons(fake, (real[0], real[1] + 7))
    assert told.startswith("no class in common: 0, 1, 2 … against 7, 8, 9 …; class_names (--class-names)")
    rare = np.where(np.arange(60) < 4, 9, fake[1])
    found = evaluate((fake[0], rare), (real[0], np.where(np.arange(66) < 30, 9, real[1])), features=first_rows())
    assert [entry["class"] for entry in found.classes] == ["0", "1", "2"]
    assert "1 classes have no neighbour number 5 on a side" in [left.reason for left in found.left_out]
