"""Names of reward components on the command line."""

from pathlib import Path

import pytest

from fastfid.runtime.imported_objects import ObjectName
from sit_rl.reward_names import ComponentName, components_of, networks_of


def test_names_networks_and_weights():
    words = ("fd", "fd:fashion-c", "kid:dinov2=0.5", "mmd=2", "python:my/file.py:score=1e-1")
    found = components_of(words, "fashion-a")
    assert found == (
        ComponentName("fd", "fashion-a"),
        ComponentName("fd", "fashion-c"),
        ComponentName("kid", "dinov2", 0.5),
        ComponentName("mmd", "fashion-a", 2.0),
        ComponentName("python", "my/file.py:score", 0.1),
    )
    assert networks_of(found) == ("fashion-a", "fashion-c", "dinov2")
    assert [str(each) for each in found][2:4] == ["kid:dinov2", "mmd:fashion-a"]
    assert found[-1].own == ObjectName("my/file.py", "score") and found[-1].own.file == Path("my/file.py")


def test_own_functions_need_no_prefix():
    found = components_of(("pkg.mod:score=0.5", "my/file.py:Reward", "python:kid:f"), "fashion-a")
    assert found == (
        ComponentName("python", "pkg.mod:score", 0.5),
        ComponentName("python", "my/file.py:Reward"),
        ComponentName("python", "kid:f"),
    )
    assert found[0].own.file is None and networks_of(found) == ()
    (network,) = components_of(("fd:pkg.mod:Net=0.5",), "fashion-a")
    assert network == ComponentName("fd", "pkg.mod:Net", 0.5)


def test_without_names_it_is_the_frechet_distance():
    assert components_of((), "inception") == (ComponentName("fd", "inception"),)


def test_a_torchscript_network_keeps_its_equals_signs():
    network = "torchscript:nets/m.pt?side=32&range=1"
    assert components_of((f"fd:{network}",), "a") == (ComponentName("fd", network),)
    assert components_of((f"fd:{network}=0.5",), "a") == (ComponentName("fd", network, 0.5),)
    assert components_of(("fd:torchscript:m.pt=2",), "a") == (ComponentName("fd", "torchscript:m.pt", 2.0),)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("fid",), "--reward fid: unknown component 'fid'; choose fd, kid, mmd, sliced_wasserstein, density_ratio"),
        (("FD:fashion-a",), "unknown component 'FD'"),
        (("",), "unknown component ''"),
        (("fd:",), "--reward fd: names no network after the colon; write fd for fashion-a"),
        (("fd=0",), "--reward fd=0: the weight '0' is no positive number"),
        (("fd=-1",), "the weight '-1' is no positive number"),
        (("fd=nan",), "the weight 'nan' is no positive number"),
        (("fd=inf",), "the weight 'inf' is no positive number"),
        (("fd=half",), "the weight 'half' is no positive number"),
        (("kid=",), "the weight '' is no positive number"),
        (("fd", "kid", "fd:fashion-a=2"), "--reward names fd:fashion-a twice"),
        (("python",), "--reward python: write package.module:NAME or FILE.py:NAME"),
        (("python:score.py",), "--reward python:score.py: write package.module:NAME or FILE.py:NAME"),
        (("python:score.py:a-b",), "--reward python:score.py:a-b: write package.module:NAME"),
    ],
)
def test_words_that_name_no_component(words, message):
    with pytest.raises(ValueError) as error:
        components_of(words, "fashion-a")
    assert message in str(error.value) and len(str(error.value).splitlines()) == 1


def test_an_unknown_component_is_told_before_a_network_is_known():
    with pytest.raises(ValueError, match="each with :NETWORK for its network, or your own, package.module:NAME"):
        components_of(("fid",), "")
