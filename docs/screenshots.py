"""Screenshots of both reports: on a wide screen, in dark mode, and on a phone.

    python -m docs.screenshots RUN EVALUATION.html          into docs/screenshots/
    python -m docs.screenshots RUN EVALUATION.html --out DIR

RUN is a run folder and EVALUATION.html a report of `fastfid eval --html`.  It needs
`pip install 'fastfid[screenshots]'` and a headless Chromium: `playwright install chromium`, or the system's
(`apt install chromium`).

The same views are what tests/docs/test_screenshots.py checks: no page is wider than its screen.
"""

from __future__ import annotations

import io
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro
from PIL import Image

FOLDER = Path(__file__).parent / "screenshots"
# Names under which systems install a Chromium that playwright can drive.
CHROMIUMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
COLORS = 96  # of a saved screenshot: a page has few, and the file stays below MOST_BYTES
MOST_BYTES = 150_000  # of a committed file
PHONE = 390  # CSS pixels of a common phone


@dataclass(frozen=True)
class View:
    """A screen: its size in CSS pixels and its colours, and the heading from which it is shown, "" for the top."""

    name: str
    width: int
    height: int
    scheme: str
    heading: str = ""


VIEWS = (
    View("light", 1100, 1100, "light"),
    View("dark", 1100, 1100, "dark"),
    View("phone", PHONE, 1500, "light"),
    View("phone-dark", PHONE, 1500, "dark"),
)
# Further down, for the documents alone.
CURVES = (
    View("curves", 1100, 1300, "light", "Distances and shares"),
    View("curves-dark", 1100, 1300, "dark", "Training"),
    View("curves-phone", PHONE, 1300, "light", "Distances and shares"),
    View("classes", 1100, 1300, "light", "Within each class"),
)


class NoBrowser(RuntimeError):
    """There is no playwright, or no browser for it."""


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium; NoBrowser that says what to install."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser("screenshots need `pip install 'fastfid[screenshots]'`") from None
    found = next((path for name in CHROMIUMS if (path := shutil.which(name))), None)
    with sync_playwright() as driver:
        try:
            started = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        except Error as error:
            reason = str(error).strip().splitlines()[0]
            raise NoBrowser(f"no Chromium could be started ({reason}); run `playwright install chromium`") from None
        try:
            yield started
        finally:
            started.close()


@contextmanager
def opened(chromium: Any, page: Path, view: View) -> Iterator[Any]:
    """The page in this view."""
    tab = chromium.new_page(viewport={"width": view.width, "height": view.height}, color_scheme=view.scheme)
    try:
        tab.goto(page.resolve().as_uri())
        yield tab
    finally:
        tab.close()


def screenshot(tab: Any, top: float = 0) -> bytes:
    """A PNG of what the screen shows of the page from `top` on, in CSS pixels, with few colours."""
    size = tab.viewport_size
    below = tab.evaluate("document.documentElement.scrollHeight") - top
    area = {"x": 0, "y": top, "width": size["width"], "height": min(size["height"], below)}
    picture = Image.open(io.BytesIO(tab.screenshot(full_page=True, clip=area))).convert("RGB")
    buffer = io.BytesIO()
    picture.quantize(COLORS, dither=Image.Dither.NONE).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def top_of(tab: Any, heading: str) -> float | None:
    """Where the first heading that begins so is; 0 without one to look for, None if the page has none."""
    if not heading:
        return 0
    found = [each for each in tab.locator("h2").all() if each.inner_text().startswith(heading)]
    return max(0, found[0].bounding_box()["y"] - 12) if found else None


@dataclass(frozen=True)
class Arguments:
    """Arguments of the command."""

    run: tyro.conf.Positional[Path]
    """folder of a run with its report.html"""
    evaluation: tyro.conf.Positional[Path]
    """report of `fastfid eval --html`"""
    out: Path = FOLDER
    """folder of the PNG files"""


def main() -> None:
    """Make all screenshots; print their paths and sizes."""
    arguments = tyro.cli(Arguments, description=__doc__)
    arguments.out.mkdir(parents=True, exist_ok=True)
    pages = {"training": arguments.run / "report.html", "evaluation": arguments.evaluation}
    with browser() as chromium:
        for name, page in pages.items():
            for view in (*VIEWS, *CURVES):
                with opened(chromium, page, view) as tab:
                    top = top_of(tab, view.heading)
                    if top is not None:
                        path = arguments.out / f"{name}-{view.name}.png"
                        path.write_bytes(screenshot(tab, top))
                        print(f"{path}: {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    try:
        main()
    except NoBrowser as error:
        raise SystemExit(f"error: {error}") from None
