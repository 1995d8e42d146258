"""Files that a reader must refuse, and the sentence with which it does."""

import zipfile

import pytest


def sentence(read, path):
    """The one sentence that a reader ends with, which names the file."""
    with pytest.raises((ValueError, OSError)) as error:
        read(path)
    text = str(error.value)
    assert str(path) in text and "\n" not in text and len(text) < 600
    return text


def npy(shape, descr="'<f8'", data=b"", length=118):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".ljust(length - 1) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + data


def zipped(path, members, method=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path
