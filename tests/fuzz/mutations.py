"""What is done to good files: bytes, words of formats, parts of archives that stay whole, values of what they hold."""

import contextlib
import gzip
import io
import re
import struct
import zipfile

from tests.fuzz.seeds import PILLOW, ending_of, objects, seeds, zipped
from tests.fuzz.values import changed_value, written

LONGEST = 1 << 20  # bytes of an input

# Numbers at the edges of what formats and machines count in.
NUMBERS = [
    0,
    1,
    2,
    127,
    128,
    255,
    256,
    2**15,
    2**16 - 1,
    2**24,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**62,
    2**63,
    2**64 - 1,
]
SIZES = {1: "B", 2: "H", 4: "I", 8: "Q"}
WORDS = {
    ".npy": [
        "'|S0'", "'<U0'", "'|O'", "'<f8'", "'>f4'", "'<f2'", "'<g'", "'<c16'", "'|b1'", "'|V8'", "'<M8[s]'", "'|u1'",
        "('<f8', (1000000000,))", "[('a', '<f8')]", "()", "(-1,)", "(0,)", "(2, 40000)", "(4294967296, 4294967296)",
        "True", "False", "None", "1e400", "(((((", "'", "\\x00", "{", "}", "'shape'", "'descr'", "fortran_order",
    ],
    ".json": [
        "{}", "[]", "null", "true", "1e400", "-1", "NaN", "Infinity", '"x"', "{", "}", "[" * 2000, '{"a":' * 2000,
        "9" * 5000, '"\\ud800"', '"\\u001b[2J"', ":", ",", '"ode"', '"fd"', "0.5",
    ],
    ".yaml": [
        "{", "}", "[" * 500, "&a ", "*a", "!!python/object:os.system ", "? ", ": ", "- ", "null", ".inf", ".nan",
        "0x10",
        "1:1:1", "9" * 400, "2001-01-01", "'", '"\\e"', "<<: ", "|\n", "---\n", "...\n",
        "%YAML 9.9\n", "\t", "~",
    ],
    ".pkl": [
        "N", "}", "]", ")", "(", "t", "0", "2", "R", "b", "s", "u", "a", "e", ".", "\x85", "\x86", "\x87", "\x94",
        "\x8f",
        "r\xff\xff\xff\x0f", "q\x00", "h\x00", "j\x00\x00\x00\x10", "\x8e\xff\xff\xff\xff\xff\xff\xff\x7f",
        "\x96\xff\xff\xff\xff\x0f\x00\x00\x00", "\x95\xff\xff\xff\xff\xff\x00\x00\x00", "cos\nsystem\n",
        "I9\n", "F1e400\n",
        "cnumpy\ndtype\n", "ccollections\nOrderedDict\n",
        "\x8a\x08\xff\xff\xff\xff\xff\xff\xff\x7f", "B\xff\xff\xff\x7f",
    ],
}  # fmt: skip
WORDS[".jsonl"] = WORDS[".json"]
WORDS[".safetensors"] = [
    *WORDS[".json"],
    '"F8_E4M3"',
    '"I64"',
    '"BOOL"',
    "data_offsets",
    "__metadata__",
    '{"heads":"0"}',
]


# --- mutations ---------------------------------------------------------------------------------------------------


def mutated(kind, rng):
    """An input of a kind, by `rng` (random.Random): a file of changed values, or a seed with one or more changes."""
    ending = ending_of(kind)
    if objects(kind) and rng.random() < 0.5:
        with contextlib.suppress(Exception):  # no file of the kind can hold the value
            return written(kind, changed_value(rng.choice(objects(kind)), rng), rng)[:LONGEST]
    content = rng.choice(seeds(kind))
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        content = _changed(content, ending, rng)[:LONGEST]
    return content


def _changed(content, ending, rng):
    if content[:4] == b"PK\x03\x04" and rng.random() < 0.6:
        return _archive_changed(content, ending, rng)
    if ending == ".gz" and content[:2] == b"\x1f\x8b" and rng.random() < 0.5:
        return _gzip_changed(content, rng)
    if ending == ".safetensors" and rng.random() < 0.6:
        return _header_changed(content, rng)
    if ending in WORDS and rng.random() < 0.5:
        return _word(content, WORDS[ending], rng)
    return rng.choice(BYTES)(content, ending, rng)


def _archive_changed(content, ending, rng):
    """One member changed, or its name, or all packed in another way; sizes and checksums are right again."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            bounded = [info for info in archive.infolist()[:50] if info.compress_type in (0, zipfile.ZIP_DEFLATED)]
            members = {info.filename: archive.read(info) for info in bounded}
    except Exception:  # an archive that an earlier mutation has damaged
        return rng.choice(BYTES)(content, ending, rng)
    if not members:
        return content + b"x"
    name = rng.choice(list(members))
    inner = ".npy" if name.endswith(".npy") else ".pkl" if name.endswith(".pkl") else "." + name.rpartition(".")[2]
    change = rng.random()
    if change < 0.7:
        members[name] = _changed(members[name], inner, rng)
    elif change < 0.8:
        members[rng.choice(["mu.npy", "features.npy", "arr_0.npy", "../x.png", "x", "a\nb.npy", "\x1b[2J.npy"])] = (
            members.pop(name)
        )
    elif change < 0.9:
        del members[name]
    else:
        members[name] = bytes(rng.choice((0, 10, LONGEST)))
    return zipped(members, rng.random() < 0.5)


def _gzip_changed(content, rng):
    try:
        with gzip.open(io.BytesIO(content)) as file:
            held = file.read(LONGEST)
        return gzip.compress(rng.choice(BYTES)(held, ".gz", rng)[:LONGEST], mtime=0)
    except Exception:
        return content[:-1]


def _header_changed(content, rng):
    """The JSON header of a safetensors file, with the right length before it."""
    length = int.from_bytes(content[:8], "little")
    header = _word(content[8 : 8 + length], WORDS[".safetensors"], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def _word(content, words, rng):
    """A word of the format in the place of a word or a number, or between two."""
    word = rng.choice(words).encode("latin-1", "replace")
    places = [
        match.span() for match in re.finditer(rb"[A-Za-z_0-9.+-]+|\([^()]*\)|'[^']*'|\"[^\"]*\"", content[:20_000])
    ]
    start, stop = rng.choice(places) if places and rng.random() < 0.7 else 2 * (rng.randrange(len(content) + 1),)
    return content[:start] + word + content[stop:]


def _flip(content, ending, rng):
    at = rng.randrange(max(1, len(content)))
    return content[:at] + bytes([content[at] ^ 1 << rng.randrange(8)]) + content[at + 1 :] if content else b"\0"


def _cut(content, ending, rng):
    return content[: rng.randrange(len(content) + 1)]


def _number(content, ending, rng):
    size = rng.choice(list(SIZES))
    number = struct.pack(rng.choice("<>") + SIZES[size], rng.choice(NUMBERS) & (1 << 8 * size) - 1)
    at = rng.randrange(max(1, len(content)))
    return content[:at] + number + content[at + size :]


def _doubled(content, ending, rng):
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in "ab")
    return content[:stop] + content[start:stop] * rng.choice((1, 1, 50)) + content[stop:]


def _removed(content, ending, rng):
    start, stop = sorted(rng.randrange(len(content) + 1) for _ in "ab")
    return content[:start] + content[stop:]


def _spliced(content, ending, rng):
    other = rng.choice(seeds(ending)) if ending in (*PILLOW, ".npz", ".npy", ".pt", ".zip", ".tar") else content
    return content[: rng.randrange(len(content) + 1)] + other[rng.randrange(len(other) + 1) :]


def _random(content, ending, rng):
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.randbytes(rng.choice((1, 4, 64))) + content[at:]


BYTES = (_flip, _flip, _cut, _number, _number, _doubled, _removed, _spliced, _random)
