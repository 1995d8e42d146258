"""Arguments of fastfid's commands: read, completed, refused, and explained without loading torch."""

import json
import subprocess
import sys

import numpy as np
import pytest

import fastfid
from tests.support.image_sets import pixels, run

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.mark.parametrize("arguments", ["--help", "eval --help", "--version", "eval a b --no-such-option", "stats a"])
def test_help_and_wrong_arguments_do_not_wait_for_torch(arguments):
    run = f"try:\n    main({arguments.split()})\nexcept SystemExit:\n    print('torch' in sys.modules)"
    command = [sys.executable, "-c", f"import sys\nfrom fastfid.__main__ import main\n{run}"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.stdout.splitlines()[-1] == "False", found.stderr


def test_the_interface_is_there_when_it_is_used():
    """Names, modules, and nothing else; whoever imports a module first finds the function of a like name."""
    told = "import fastfid.evaluation.evaluate, fastfid; from fastfid import *; assert fastfid.evaluate is evaluate; "
    told += "assert {'SwapEngine', 'kid'} <= set(dir(fastfid)) and fastfid.protocols.PROTOCOLS; "
    told += "print([name for name in fastfid.__all__ if not callable(globals()[name])], hasattr(fastfid, 'nothing'))"
    found = subprocess.run([sys.executable, "-c", told], capture_output=True, text=True, timeout=60)
    assert found.stdout == "[] False\n", found.stderr


def test_a_range_below_zero_is_no_option(sets, capsys):
    floats = pixels(60, 0).astype(np.float32) / 127.5 - 1
    np.save(sets / "floats.npy", floats)
    np.save(sets / "bytes.npy", pixels(60, 0))
    values = [
        json.loads(run(capsys, sets / name, sets / "b.npz", *options, "--json")[1])["value"]
        for name, options in (("bytes.npy", ()), ("floats.npy", ("--value-range", "-1,1")))
    ]
    assert values[0] == values[1]
    with pytest.raises(SystemExit):
        run(capsys, sets / "floats.npy", sets / "b.npz", "--value-range", "1")
    assert "argument --value-range: '1' is no LOW,HIGH such as 0,1 or -1,1" in capsys.readouterr().err


def test_flags_may_be_abbreviated_and_stand_anywhere(sets, capsys):
    arguments = ("--met", "fd", sets / "a", "--netw=fashion-b", sets / "b.npz", "--js")
    status, out, _ = run(capsys, "eval", *arguments)
    report = json.loads(out)
    assert status == 0 and [s["metric"] for s in report["scores"]] == ["fd"]
    assert report["networks"][0]["name"] == "fashion-b"
    with pytest.raises(SystemExit, match="2"):  # --s: --save-stats or --skip-corrupt
        run(capsys, sets / "a", sets / "b.npz", "--s")
    assert "unrecognized arguments: --s" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="0"):
        run(capsys, "--vers")
    assert capsys.readouterr().out == f"fastfid {fastfid.__version__}\n"


def test_weights_of_one_network_or_of_several(sets, capsys):
    for weights, missing in (("none", "none"), ("fashion-b=none,fashion-a=nil", "nil")):
        status, _, err = run(capsys, sets / "a", sets / "b.npz", "--weights", weights)
        assert status == 2 and f"({missing})" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("a b --protocol nobody", "unknown protocol 'nobody'; choose one of fastfid, adm"),
        ("stats a b.npz c", "unrecognized arguments: c\n"),
        ("eval a b --batch-size many", "--batch-size"),
        ("diff a b", "REAL"),
    ],
)
def test_wrong_arguments_are_refused_before_any_work(arguments, message, capsys):
    with pytest.raises(SystemExit, match="2"):
        run(capsys, *arguments.split())
    assert message in capsys.readouterr().err
