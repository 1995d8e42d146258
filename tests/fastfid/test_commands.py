"""eval, diff, stats and convert: what they print and write, and one sentence for bad input."""

import json
import os
import re

import numpy as np
import pytest
from PIL import Image

from fastfid import frechet_distance
from fastfid.statistics.statistics import read_statistics
from tests.support.image_sets import expected_distance, pixels, run

pytestmark = pytest.mark.usefixtures("own_cache")


def test_eval_prints_a_table(sets, capsys):
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz")
    assert status == 0 and err == ""  # over before a bar is worth showing
    lines = out.splitlines()
    assert lines[0].startswith("network fashion-a, d = 128, weights ec47faaa5168, preprocessing: mean over channels")
    assert lines[1:3] == [f"samples: 150 images, {sets / 'a'}", f"real images: 140 images, {sets / 'b.npz'}"]
    label, value, interval = (part.strip() for part in re.split(r"\s{2,}", lines[4]))
    assert label == "FD (fashion-a) ↓" and float(value) == pytest.approx(expected_distance("fashion-a"), rel=1e-4)
    assert re.match(r"95% [\d.]+ to [\d.]+ \(jackknife over samples and real images;", interval)
    assert any(line.startswith("Recall") for line in lines) and any(line.startswith("left out: sfid") for line in lines)
    assert "warning: KID subsets shrank from 1000 to the 140 images there are" in lines


def test_eval_json_html_and_options(sets, capsys):
    arguments = ("--metrics", "fd,kid,recall", "--kid-subset-size", 50, "--nearest-k", 3, "--network", "fashion-b")
    status, out, _ = run(
        capsys, "eval", sets / "a.zip", sets / "b.npz", *arguments, "--json", "--html", sets / "report.html"
    )
    report = json.loads(out)
    assert status == 0 and report["schema"] == "fastfid.evaluation/2"
    assert [score["metric"] for score in report["scores"]] == ["fd", "kid", "recall"]
    assert report["scores"][0]["value"] == pytest.approx(expected_distance("fashion-b"), rel=1e-4)
    assert report["scores"][1]["details"]["subset_size"] == 50 and report["scores"][2]["details"]["nearest_k"] == 3
    assert "FD (fashion-b)" in (sets / "report.html").read_text()
    both = json.loads(run(capsys, "eval", sets / "a", sets / "b.npz", "--network", "fashion-a,fashion-b", "--json")[1])
    assert [network["name"] for network in both["networks"]] == ["fashion-a", "fashion-b"]
    _, table, _ = run(capsys, "eval", sets / "a", sets / "b.npz", "--network", "fashion-a,fashion-b", *arguments[:2])
    for network in ("fashion-a", "fashion-b"):  # no score without its network
        assert all(f"\n{label} ({network}) " in table for label in ("FD", "KID", "Recall"))


def test_eval_with_other_real_images(sets, capsys):
    """FDr in the table, in JSON and in the report; the samples themselves are as far from the reference as they are."""
    arguments = ("--metrics", "fd,sliced_wasserstein", "--split", sets / "a.zip")
    status, out, _ = run(capsys, "eval", sets / "a", sets / "b.npz", *arguments, "--html", sets / "report.html")
    assert status == 0 and re.search(r"\nFDr \(fashion-a\) ↓ +1 ", out) and "\nSliced W₂ (fashion-a) " in out
    assert "FDr (fashion-a)" in (sets / "report.html").read_text()
    scores = json.loads(run(capsys, "eval", sets / "a", sets / "b.npz", *arguments, "--json")[1])["scores"]
    assert [score["metric"] for score in scores] == ["fd", "sliced_wasserstein", "fdr"]
    assert scores[2]["value"] == pytest.approx(1) and scores[2]["details"]["real_images"] == str(sets / "a.zip")
    status, _, err = run(capsys, "eval", sets / "a", sets / "b.npz", "--split", sets / "nowhere")
    assert status == 2 and "nowhere" in err and err.count("\n") == 1


def test_the_cache_and_doing_without(sets, capsys):
    run(capsys, "eval", sets / "a", sets / "b.npz", "--metrics", "fd", "--no-cache")
    assert not (sets / "cache").exists()
    first = run(capsys, "eval", sets / "a", sets / "b.npz", "--metrics", "fd")[1]
    assert len(list((sets / "cache").rglob("*.npz"))) == 2
    assert (
        run(capsys, "eval", sets / "a.zip", sets / "b.npz", "--metrics", "fd")[1].splitlines()[4]
        == first.splitlines()[4]
    )
    assert len(list((sets / "cache").rglob("*.npz"))) == 2  # the zip holds the same images


def test_scores_are_printed_before_the_report_is_written(sets, capsys, monkeypatch):
    """A disk that fills up meanwhile costs the report alone, and the file is named."""

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastfid.runtime.atomic_files.os.replace", full)
    report = sets / "report.html"
    options = ("--metrics", "fd", "--no-cache", "--html", report)
    status, out, err = run(capsys, "eval", sets / "a", sets / "b.npz", *options)
    assert status == 2 and "FD (fashion-a)" in out
    assert err == f"fastfid: {report} could not be written (No space left on device)\n"
    assert not report.exists() and not list(sets.glob(".report*"))


def test_eval_of_nothing_computable_says_so_with_its_status(sets, capsys):
    assert run(capsys, "stats", sets / "a", sets / "real.npz")[0] == 0
    status, out, err = run(capsys, "eval", sets / "b.npz", sets / "real.npz", "--metrics", "kid")
    assert status == 2 and "left out: kid" in out and err.endswith("with its reason, is printed above\n")
    assert run(capsys, "eval", sets / "b.npz", sets / "real.npz", "--metrics", "fd,kid")[0] == 0


def test_stats_info_and_eval_against_them(sets, capsys):
    status, out, _ = run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--network", "fashion-b")
    assert status == 0 and out.startswith(f"{sets / 'real.npz'}: 140 images, network fashion-b, weights ab405303c4fa")
    report = json.loads(run(capsys, "info", sets / "real.npz", "--json")[1])
    assert (report["count"], report["dim"], report["extractor"]) == (140, 96, "fashion-b")
    assert report["holds"] == "statistics, fastfid" and report["features"] is False and report["protocol"] == "fastfid"
    text = run(capsys, "info", sets / "real.npz")[1]
    assert "count" in text and "weights_sha256" in text and "ab405303c4fa" in text
    assert "28 × 28" in run(capsys, "info", sets / "a")[1]
    out = run(capsys, "eval", sets / "a", sets / "real.npz")[1]  # the network is the one recorded
    metrics = "kid, mmd, sliced_wasserstein, precision, recall, density, coverage"
    assert "FD (fashion-b)" in out and f"left out: {metrics} (fashion-b)" in out
    assert "holds statistics only; pass its images, or features saved with --keep-features" in out
    run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--keep-features")
    assert "Recall" in run(capsys, "eval", sets / "a", sets / "real.npz")[1]


def test_convert_reads_peers_and_writes_ours(sets, capsys):
    np.savez(sets / "peer.npz", mu=np.zeros(3, np.float32), sigma=np.eye(3))
    arguments = ("convert", sets / "peer.npz", sets / "ours.npz", "--network", "inception", "--count", 50)
    assert run(capsys, *arguments)[1] == f"{sets / 'ours.npz'}: 50 images, network inception, weights unknown\n"
    ours = read_statistics(sets / "ours.npz")
    assert ours.count == 50 and ours.provenance["source"] == "peer.npz (mu, sigma (pytorch-fid, clean-fid, EDM))"
    np.savez(sets / "other.npz", mu=np.full(3, 2.0), sigma=np.eye(3))
    assert run(capsys, sets / "ours.npz", sets / "other.npz")[1].splitlines()[-1] == "FID:  12.0"
    again = ("convert", sets / "ours.npz", sets / "again.npz")
    assert "says its network is inception, not dinov2" in run(capsys, *again, "--network", "dinov2")[2]
    assert "says it is of 50 images" in run(capsys, *again, "--count", 60)[2]


def test_diff(sets, capsys):
    np.savez(sets / "bright.npz", arr_0=pixels(130, 6))
    status, out, _ = run(capsys, "diff", sets / "a", sets / "bright.npz", sets / "b.npz")
    assert status == 0 and "A is nearer to the real images" in out.splitlines()
    assert "A has 150 images and B has 130, and a distance of fewer images is larger" in out
    report = json.loads(run(capsys, "diff", sets / "bright.npz", sets / "a", sets / "b.npz", "--json")[1])
    assert report["better"] == "B" and report["interval"][0] > 0
    assert report["a"] - report["b"] == pytest.approx(report["difference"])


def test_mismatches_and_force(sets, capsys):
    run(capsys, "stats", sets / "b.npz", sets / "real.npz", "--network", "fashion-b")
    status, out, err = run(capsys, "eval", sets / "a", sets / "real.npz", "--network", "fashion-a", "--force")
    assert status == 2 and "real.npz has d = 96 features, the network fashion-a has d = 128" in err and out == ""
    statistics = read_statistics(sets / "real.npz")
    statistics.provenance["preprocessing"] = "PIL bicubic"
    statistics.save(sets / "real.npz")
    status, out, err = run(capsys, "eval", sets / "a", sets / "real.npz", "--metrics", "fd")
    assert status == 2 and out == ""
    assert f"the preprocessing of {sets / 'real.npz'} is PIL bicubic, that of the network fashion-b is mean over" in err
    status, out, _ = run(capsys, "eval", sets / "a", sets / "real.npz", "--metrics", "fd", "--force")
    assert status == 0 and "warning: compared regardless of a mismatch: the preprocessing of" in out

    # the short form keeps it, too, beside pytorch-fid's line
    status, out, err = run(capsys, sets / "a", sets / "real.npz", "--force", "--json")
    assert status == 0 and "fastfid: note: compared regardless of a mismatch: the preprocessing of" in err
    assert any("compared regardless of a mismatch" in warning for warning in json.loads(out)["warnings"])


def test_the_short_form_and_stats_tell_what_they_skip(sets, capsys):
    (sets / "a" / "zzz.png").write_bytes(b"damaged")
    skipped = "left out of .*a: 1 unreadable image, the first: zzz.png in"
    _, out, err = run(capsys, sets / "a", sets / "b.npz", "--skip-corrupt", "--json")
    assert re.search(f"fastfid: note: {skipped}", err)
    assert any(re.search(skipped, warning) for warning in json.loads(out)["warnings"])
    _, _, err = run(capsys, "stats", sets / "a", sets / "a.npz", "--skip-corrupt")
    assert "fastfid: note: left out: 1 unreadable image, the first: zzz.png in" in err
    assert read_statistics(sets / "a.npz").provenance["skipped"] == "1"


def test_bad_input_to_commands_is_one_sentence_and_status_2(sets, capsys):
    (sets / "evil.pkl").write_bytes(b"cos\nsystem\n(Vtrue\ntR.")
    (sets / "a" / "zzz.png").write_bytes(b"damaged")
    for arguments, message in [
        (("eval", sets / "nowhere", sets / "b.npz"), "nowhere does not exist"),
        (("eval", sets / "a", sets / "b.npz"), "zzz.png in"),
        (("eval", sets / "b.npz", sets / "evil.pkl"), "asks for os.system, which is refused because it could run code"),
        (("info", sets / "evil.pkl"), "refused because it could run code"),
        (("eval", sets / "b.npz", sets / "b.npz", "--metrics", "vendi"), "unknown metric 'vendi'"),
        (("eval", sets / "b.npz", sets / "b.npz", "--network", "vgg"), "unknown feature network 'vgg'"),
        (
            ("eval", sets / "b.npz", sets / "b.npz", "--weights", f"fashion-a={sets / 'none'}"),
            f"missing ({sets / 'none'})",
        ),
        (("eval", sets / "b.npz", sets / "b.npz", "--html", sets / "no" / "x.html"), "does not exist; create it first"),
        (("stats", sets / "b.npz", sets / "x.pkl"), "does not end in .npz"),
        (("stats", sets / "b.npz", sets / "x.npz", "--spatial"), "fashion-a has no spatial features; use inception"),
        (("eval", "", sets / "b.npz"), "images are given as an empty path"),
        (("convert", sets / "nowhere.npz", sets / "x.npz"), "no statistics file at"),
        (("diff", sets / "b.npz", sets / "a", sets / "b.npz"), "zzz.png in"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert status == 2 and out == "" and len(err.splitlines()) == 1, arguments
        assert err.startswith("fastfid: ") and message in err
    status, out, _ = run(capsys, "eval", sets / "a", sets / "b.npz", "--skip-corrupt", "--metrics", "fd")
    assert status == 0 and "samples: 150 images" in out and "a: 1 unreadable image, the first" in out


def test_where_nothing_can_be_written_is_told_before_any_work(sets, capsys, monkeypatch):
    monkeypatch.setattr("fastfid.evaluation.sides.extract", lambda *_: pytest.fail("an image was read"))
    np.savez(sets / "peer.npz", mu=np.zeros(3), sigma=np.eye(3))
    (sets / "x.npz").mkdir()
    images = sets / "a", sets / "b.npz"
    for arguments, message in [
        (("eval", *images, "--html", sets), f"{sets} is a folder; name a file in it"),
        (("stats", sets / "a", sets / "x.npz"), "x.npz is a folder; name a file in it"),
        (("convert", sets / "peer.npz", sets / "x.npz"), "x.npz is a folder; name a file in it"),
        (("stats", sets / "a", sets / "no" / "y.npz"), "does not exist; create it first"),
    ]:
        status, out, err = run(capsys, *arguments)
        assert (status, out, len(err.splitlines())) == (2, "", 1) and message in err
    monkeypatch.setattr("os.access", lambda path, mode: False)  # as on a disk that is read only
    status, _, err = run(capsys, "eval", *images, "--html", sets / "x.html")
    assert (status, err) == (2, f"fastfid: no file can be written into {sets}, the folder of {sets / 'x.html'}; "
                                "write it elsewhere\n")  # fmt: skip
    with pytest.raises(SystemExit):
        run(capsys, "eval", *images, "--json", sets / "x.json")
    assert "x.json; --json prints: write `--json > FILE`" in capsys.readouterr().err


# --- what needs no network, and what commands no terminal ---------------------------------------------------------


def test_the_distance_of_two_references_of_adm_needs_no_network(tmp_path, capsys, monkeypatch):
    """Their mu and sigma suffice, though they hold images as well."""

    def refuse(*_, **__):
        raise AssertionError("a network was made")

    monkeypatch.setattr("fastfid.evaluation.sides.build_extractor", refuse)
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        x = rng.normal(size=(40, 6))
        moments = {"mu": x.mean(0), "sigma": np.cov(x.T), "mu_s": x.mean(0), "sigma_s": np.cov(x.T)}
        np.savez(tmp_path / f"{name}.npz", **moments, arr_0=np.zeros((40, 4, 4, 3), np.uint8))
    status, out, err = run(capsys, tmp_path / "one.npz", tmp_path / "two.npz")
    assert status == 0 and err == ""
    pairs = [tuple(np.load(tmp_path / f"{name}.npz")[key] for key in ("mu", "sigma")) for name in ("one", "two")]
    assert float(out.splitlines()[-1].split()[-1]) == pytest.approx(frechet_distance(*pairs), rel=1e-12)
    np.savez(tmp_path / "none.npz", mu=x.mean(0), sigma=np.cov(x.T), arr_0=np.zeros((40, 4, 4, 3), np.uint8))
    with pytest.raises(AssertionError, match="a network was made"):  # of unknown origin: the images decide
        run(capsys, tmp_path / "one.npz", tmp_path / "none.npz")


def test_names_of_files_do_not_command_the_terminal(tmp_path, capsys):
    """A name may hold the escape character, which changes colours, titles and what was printed before."""
    hostile = "\x1b]0;owned\x07\x9b31m\u202e"
    folder = tmp_path / f"set{hostile}"
    folder.mkdir()
    for i, image in enumerate(pixels(30, 1)):
        Image.fromarray(image).save(folder / f"{i:02}{hostile}.png")
    (folder / f"zz{hostile}.png").write_bytes(b"damaged")
    (folder / f"notes.{hostile}").write_bytes(b"")
    options = ("--skip-corrupt", "--no-cache", "--network", "fashion-a")
    printed = [
        run(capsys, folder, folder, *options),
        run(capsys, folder, folder, "--no-cache"),
        run(capsys, "eval", folder, folder, *options, "--metrics", "fd,outliers"),
        run(capsys, "eval", folder, folder, *options, "--metrics", "fd", "--json"),
        run(capsys, "stats", folder, tmp_path / f"x{hostile}.npz", *options),
        run(capsys, "convert", tmp_path / f"x{hostile}.npz", tmp_path / f"y{hostile}.npz"),
        run(capsys, "info", folder),
        run(capsys, "info", tmp_path / f"x{hostile}.npz"),
    ]
    assert [status for status, *_ in printed] == [0, 2, *[0] * 6]
    for _, out, err in printed:
        assert all(c.isprintable() or c in "\n\t" for c in out + err)
    assert "\\x1b]0;owned\\x07\\x9b31m\\u202e" in printed[1][2]


def test_names_of_files_that_are_not_utf8_lose_nothing(tmp_path, capsys):
    """Linux names files by bytes; they are told as escapes, in the report as well."""
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    folder.mkdir()
    for i, image in enumerate(pixels(30, 1)):
        Image.fromarray(image).save(folder / os.fsdecode(b"caf\xe9 %02d.png" % i))
    (folder / os.fsdecode(b"zz \xe9.png")).write_bytes(b"damaged")
    (folder / os.fsdecode(b"notes.\xe9")).write_bytes(b"")
    options = ("--skip-corrupt", "--no-cache", "--network", "fashion-a", "--metrics", "fd,outliers")
    status, out, _ = run(capsys, "eval", folder, folder, *options, "--html", tmp_path / "r.html")
    page = (tmp_path / "r.html").read_text(encoding="utf-8")
    assert status == 0 and "caf\\udce9" in out and "caf\\udce9 0" in page and "zz \\udce9.png" in page
    status, out, _ = run(capsys, "eval", folder, folder, *options, "--json")
    assert status == 0 and json.loads(out)["outliers"]
    assert run(capsys, "stats", folder, tmp_path / os.fsdecode(b"\xe9.npz"), *options[:4])[0] == 0
    status, out, _ = run(capsys, "info", tmp_path / os.fsdecode(b"\xe9.npz"))
    assert status == 0 and "caf\\udce9" in out and "\\udce9.npz" in out


def test_a_count_below_0_is_refused(sets, capsys):
    assert run(capsys, "stats", sets / "a", sets / "real.npz")[0] == 0
    with np.load(sets / "real.npz") as arrays:
        np.savez(sets / "bare.npz", mu=arrays["mu"], sigma=arrays["sigma"])
    status, _, err = run(capsys, "convert", sets / "bare.npz", sets / "x.npz", "--count", "-5")
    assert status == 2 and "count of these statistics is -5; pass the number of images" in err
    assert not (sets / "x.npz").exists()
