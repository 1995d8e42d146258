"""Fixtures of fastfid's tests."""

import zipfile

import numpy as np
import pytest
from PIL import Image

from tests.support.image_sets import pixels


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    """An empty cache of features for this test alone."""
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def sets(tmp_path):
    """The same images as folder and zip (a), and others as npz (b)."""
    (tmp_path / "a").mkdir()
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i, image in enumerate(pixels(150, 1)):
            path = tmp_path / "a" / f"{i:03}.png"
            Image.fromarray(image).save(path)
            archive.write(path, path.name)
    np.savez(tmp_path / "b.npz", arr_0=pixels(140, 2))
    return tmp_path
