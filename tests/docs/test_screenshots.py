"""Both reports in a headless Chromium: no page is wider than its screen, dark mode is dark, the flip flips."""

import json

import numpy as np
import pytest
import torch

from docs.screenshots import MOST_BYTES, VIEWS, NoBrowser, browser, opened, screenshot
from fastfid.evaluation.evaluate import evaluate
from fastfid.evaluation.html_report import write_report
from sit_rl.runs.html_report import write_run_report
from tests.support.run_summaries import metrics_lines, summary_with_everything
from tests.support.small_network import pixels, small, write_images

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def chromium():
    try:
        with browser() as started:
            yield started
    except NoBrowser as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Both reports with everything that they can show."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "summary.json").write_text(json.dumps(summary_with_everything()))
    (folder / "metrics.jsonl").write_text(metrics_lines(40))
    (folder / "figures").mkdir()
    for i, name in enumerate(("before_ode", "before_sde", "after_ode", "after_sde")):
        images = np.random.default_rng(i).integers(0, 255, (100, 1, 28, 28))
        np.save(folder / "figures" / f"{name}.npy", images.astype(np.uint8))
    long = folder / ("a-folder-with-a-long-name-" * 4)
    samples = torch.from_numpy(pixels(60, 1)), torch.arange(60) % 3
    result = evaluate(samples, write_images(long, pixels(70, 2)), features=small()[0])
    return {"training": write_run_report(folder), "evaluation": write_report(result, folder / "evaluation.html")}


@pytest.mark.parametrize("name", ["training", "evaluation"])
@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_no_page_is_wider_than_its_screen(chromium, pages, name, view):
    with opened(chromium, pages[name], view) as tab:
        tab.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
        assert tab.evaluate("document.documentElement.scrollWidth") <= view.width
        hidden = (
            "[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth + 1).length"
        )
        assert tab.evaluate(hidden) == 0  # no column is out of sight
        small_text = tab.evaluate(
            "[...document.querySelectorAll('p, td, th, small, figcaption, summary')].filter("
            "each => parseFloat(getComputedStyle(each).fontSize) < 11).length"
        )
        assert small_text == 0
        back = tab.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(map(int, back[4:-1].split(","))) / 3
        assert (brightness < 60) == (view.scheme == "dark")
        assert len(screenshot(tab)) < MOST_BYTES


def test_the_flip_shows_one_side_in_the_place_of_the_other(chromium, pages):
    with opened(chromium, pages["training"], VIEWS[0]) as tab:
        before, after = tab.locator("#ode-before"), tab.locator("#ode-after")
        pictures = [tab.locator(".flip").first.locator(f"figure.{side}") for side in ("before", "after")]
        assert all(picture.is_visible() for picture in pictures)
        before.check()
        place = pictures[0].bounding_box()
        assert not pictures[1].is_visible()
        after.check()
        assert pictures[1].bounding_box() == place and not pictures[0].is_visible()
