"""Two processes give the numbers of one, rank 0 alone prints and writes, and no rank waits for one that failed."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from fastfid import evaluate
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import compare, statistics_of
from fastfid.features import extraction

SHARD = 16  # images of a shard in the script: 70 images are five

# Runs on both ranks; each writes what it found.
SCRIPT = """
import json, os, sys
import torch
from fastfid import evaluate, open_images
from fastfid.evaluation.difference import diff
from fastfid.evaluation.evaluate import compare, statistics_of
from fastfid.features import extraction
from fastfid.runtime import distributed, mapped_arrays

extraction.SHARD_IMAGES = 16
folder, rank = sys.argv[1], int(os.environ["RANK"])
found = {}


def attempt(name, call):
    try:
        found[name] = call()
    except Exception as error:
        found[name] = [type(error).__name__, str(error)]


def scores(result):
    return [[s.metric, s.value, s.standard_error] for s in result.scores] + [
        [c["class"], c["precision"], c["recall"]] for c in result.classes
    ]


def whole():
    result = evaluate(f"{folder}/fake", f"{folder}/real.npz", cache=False)
    provenance = [result.provenance[side]["source_sha256"] for side in ("samples", "real")]
    return [scores(result), provenance, result.outliers, result.neighbours, result.sources["samples"].name]


def skipping():
    result = evaluate(f"{folder}/bad", f"{folder}/real.npz", metrics=["fd"], skip_corrupt=True)
    return [scores(result), result.provenance["samples"]["skipped"], result.warnings]


def streamed():
    images = next(open_images(f"{folder}/real.npz").batches(1000))
    mine = (images[:37], images[37:])[rank]  # each rank's own part
    return scores(evaluate(iter(mine.split(7)), f"{folder}/real.npz", metrics=["fd", "precision"]))


def sampled():
    images = next(open_images(f"{folder}/real.npz").batches(1000))[:21]
    dataset = torch.utils.data.TensorDataset(images)
    loader = torch.utils.data.DataLoader(dataset, 4, sampler=torch.utils.data.DistributedSampler(dataset))
    result = evaluate(loader, f"{folder}/real.npz", metrics=["fd"])
    return [result.provenance["samples"]["count"], result.warnings]


def statistics(keep):
    statistics = statistics_of(f"{folder}/fake", keep_features=keep)
    rows = None if statistics.features is None else len(statistics.features)
    return [statistics.count, statistics.moments.mean.tolist(), statistics.moments.cov.tolist(), rows]


def in_files():
    mapped_arrays.LARGE, before = 0, mapped_arrays.LARGE
    try:
        return whole()
    finally:
        mapped_arrays.LARGE = before


with distributed.process_group():
    attempt("whole", whole)
    attempt("in files", in_files)
    attempt("skipping", skipping)
    attempt("distance", lambda: compare(f"{folder}/bad", f"{folder}/real.npz", skip_corrupt=True)[2].total)
    attempt("streamed", streamed)
    attempt("sampled", sampled)
    attempt("statistics", lambda: statistics(False))
    attempt("features", lambda: statistics(True))
    attempt("difference", lambda: diff(f"{folder}/fake", f"{folder}/real.npz", f"{folder}/real.npz").difference)
    attempt("bad image", lambda: evaluate(f"{folder}/bad", f"{folder}/real.npz", cache=False))
    attempt("mixed", lambda: evaluate(f"{folder}/mixed", f"{folder}/real.npz"))
    attempt("missing on one", lambda: evaluate(f"{folder}/fake", f"{folder}/{'real.npz' if rank else 'none'}"))
    attempt("metrics", lambda: diff(f"{folder}/fake", torch.zeros(3, 5), f"{folder}/real.npz"))
    with distributed.alone():  # of different things, without waiting for each other
        attempt("alone", lambda: statistics_of(f"{folder}/{('fake', 'real.npz')[rank]}").count)
    attempt("single", lambda: evaluate(f"{folder}/one", f"{folder}/real.npz"))
json.dump(found, open(f"{folder}/found-{rank}.json", "w"))
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTFID_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(extraction, "SHARD_IMAGES", SHARD)


def pixels(n, seed, side=28):
    return (np.random.default_rng(seed).random((n, side, side)) * (200 + 10 * seed)).astype(np.uint8)


def write_classes(folder, images):
    for i, image in enumerate(images):
        path = folder / str(i * 3 // len(images)) / f"{i:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)


@pytest.fixture
def sets(tmp_path):
    for name in ("fake", "bad", "mixed"):
        write_classes(tmp_path / name, pixels(70, 1))
    (tmp_path / "bad" / "2" / "066.png").write_bytes(b"damaged")  # in the last shard, rank 1's
    for i in range(32, 70):  # all of rank 1's, which sees one size as rank 0 does
        Image.fromarray(pixels(1, 1, side=20)[0]).save(tmp_path / "mixed" / str(i * 3 // 70) / f"{i:03}.png")
    write_classes(tmp_path / "one", pixels(1, 1))
    np.savez(tmp_path / "real.npz", pixels(90, 2), np.arange(90) % 3)
    return tmp_path


def run_ranks(command, **environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            command,
            env=os.environ | world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [rank.communicate(timeout=240) for rank in ranks]
    return [(rank.returncode, *output) for rank, output in zip(ranks, outputs, strict=True)]


def scores(result):
    return [[s.metric, s.value, s.standard_error] for s in result.scores] + [
        [c["class"], c["precision"], c["recall"]] for c in result.classes
    ]


def test_two_ranks_are_one_process(sets):
    for status, _, err in run_ranks([sys.executable, "-c", SCRIPT, str(sets)]):
        assert status == 0, err
    first, second = (json.loads((sets / f"found-{rank}.json").read_text()) for rank in range(2))
    fake, real = sets / "fake", sets / "real.npz"

    # the same batches meet the same network, so nothing differs at all
    alone = evaluate(fake, real, cache=False)
    digests = [alone.provenance[side]["source_sha256"] for side in ("samples", "real")]
    assert first["whole"] == [scores(alone), digests, alone.outliers, alone.neighbours, str(fake)] == second["whole"]
    assert first["in files"] == first["whole"] and second["in files"] == second["whole"]
    assert len(alone.classes) == 3
    alone = evaluate(sets / "bad", real, metrics=["fd"], skip_corrupt=True)
    expected = [scores(alone), alone.provenance["samples"]["skipped"], alone.warnings]
    assert first["skipping"] == expected == second["skipping"] and "066.png" in expected[1][0]
    assert len(list((sets / "cache").rglob("*.npz"))) >= 10  # both ranks' shards
    # moments alone are reduced: sums in another order
    (_, _, alone, _) = compare(sets / "bad", real, skip_corrupt=True)
    assert first["distance"] == second["distance"] == pytest.approx(alone.total, rel=1e-10)

    # the parts of two streams are other batches, 37 + 53 images: float32 rounding of a convolution
    alone = evaluate(real, real, metrics=["fd", "precision"])
    assert [name for name, *_ in first["streamed"]] == ["fd", "precision"] and first["streamed"] == second["streamed"]
    assert first["streamed"][0][1] == pytest.approx(alone["fd"].value, abs=1e-4)

    # 21 images on two ranks: one is given twice, and counts once
    told = "left out of the samples: 1 image that its DistributedSampler gives a second time"
    assert first["sampled"] == second["sampled"] and first["sampled"][0] == 21 and told in first["sampled"][1]

    alone = statistics_of(fake, keep_features=True)
    for name, rows in (("statistics", None), ("features", 70)):
        count, mean, cov, kept = first[name]
        assert (count, kept) == (70, rows) and first[name] == second[name]
        np.testing.assert_allclose(mean, alone.moments.mean, rtol=1e-10, atol=1e-12)
        scale = alone.moments.cov.abs().max().item()
        np.testing.assert_allclose(cov, alone.moments.cov, rtol=1e-10, atol=1e-13 * scale)
    assert first["difference"] == second["difference"] == diff(fake, real, real).difference

    assert (first["alone"], second["alone"]) == (70, 90)

    # errors: rank 0 tells, the others stop for it
    for name, kind, message in [
        ("bad image", "ValueError", "066.png in"),
        ("mixed", "ValueError", "has shape (1, 20, 20), 0/000.png has (1, 28, 28); resize all images to one size"),
        ("missing on one", "FileNotFoundError", "none does not exist"),
        ("metrics", "ValueError", "B has d = 5 features, the network fashion-a has d = 128"),
        ("single", "ValueError", "holds 1 usable image"),
    ]:
        assert first[name][0] == kind and message in first[name][1], name
        assert second[name] == ["OtherRankFailed", first[name][1]]


def test_torchrun(sets):
    """The command as people type it; of two ranks one prints and writes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "fastfid"]
    arguments = ["eval", str(sets / "fake"), str(sets / "real.npz"), "--json", "--html", str(sets / "report.html")]
    run = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=240)
    assert run.returncode == 0, run.stderr
    report = json.loads(run.stdout)  # one object, not two
    monkeypatched = extraction.SHARD_IMAGES
    extraction.SHARD_IMAGES = 256  # the command's own
    alone = evaluate(sets / "fake", sets / "real.npz")
    extraction.SHARD_IMAGES = monkeypatched
    assert [(s["metric"], s["value"]) for s in report["scores"]] == [
        (s.metric, pytest.approx(s.value, rel=1e-10)) for s in alone.scores
    ]
    assert "within each class" in (sets / "report.html").read_text().lower()


def test_a_failing_command_ends_on_every_rank(sets):
    """A late bad image that only rank 1 meets: both end with status 2, and rank 0 tells."""
    script = "import sys; from fastfid.features import extraction; extraction.SHARD_IMAGES = 16;"
    script += "from fastfid.__main__ import main; sys.exit(main())"
    ranks = run_ranks([sys.executable, "-c", script, "eval", str(sets / "bad"), str(sets / "real.npz")])
    assert [status for status, *_ in ranks] == [2, 2] and all(out == "" for _, out, _ in ranks)
    (_, _, told), (_, _, silent) = ranks
    last = told.splitlines()[-1]
    assert last.startswith("fastfid: ") and "066.png in" in last and "fastfid:" not in silent


def test_one_process_needs_no_group():
    from fastfid.runtime import distributed

    assert (distributed.rank(), distributed.world_size(), distributed.is_main()) == (0, 1, True)
    assert distributed.owned(70, 16) == (0, 70) and distributed.gather_objects(3) == [3]
    x = torch.ones(2, 3)
    assert distributed.gather_rows(x) is x and distributed.local_device("cuda") == "cuda"
    with pytest.raises(KeyError), distributed.agreement():
        raise KeyError("as it is")
