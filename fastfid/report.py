"""report.html of an evaluation: one self-contained file, everything shown in it escaped.

Scores with their intervals, the samples that hurt and help the Fréchet distance most (by what leaving each out would
change), the nearest reference images of some samples, and the whole provenance.  Pictures are read again from their
sources, a few dozen of them, and embedded.
"""

from __future__ import annotations

import base64
import html
import io
import json
from pathlib import Path

from torch import Tensor

from fastfid.evaluate import EvaluationResult
from fastfid.moments import write_atomically

PICTURE_SIDE = 96  # CSS pixels a picture is shown at; embedded ones are at most twice that, for sharp screens

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:64rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td,th{padding:.25rem .8rem;text-align:left;border-bottom:1px solid #ddd;
vertical-align:top}td.n{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
small{color:#666}.row{display:flex;flex-wrap:wrap;gap:.7rem;margin:.5rem 0 1.2rem}
figure{margin:0;width:6.6rem}figcaption{font-size:11px;overflow-wrap:anywhere;color:#444}
img{width:6rem;height:6rem;object-fit:contain;image-rendering:pixelated;background:#eee}
.first{border-right:2px solid #bbb;padding-right:.7rem}pre{background:#f6f6f6;padding:1rem;overflow:auto}
.warning{background:#fff4d6;padding:.4rem .8rem;margin:.3rem 0}"""


def write_report(result: EvaluationResult, path: str | Path) -> Path:
    """Write the report of `result` to `path`, whole or not at all, and return the path."""
    page = report_html(result)
    write_atomically(path, lambda file: file.write(page.encode()))
    return Path(path)


def report_html(result: EvaluationResult) -> str:
    """The whole document."""
    title = f"{result.provenance['samples']['name']} against {result.provenance['reference']['name']}"
    parts = [
        f"<h1>{_text(title)}</h1>",
        _summary(result),
        "".join(f"<p class='warning'>{_text(warning)}</p>" for warning in result.warnings),
        _scores(result),
        *(_outliers(result, found) for found in result.outliers),
        _neighbours(result),
        f"<h2>Everything, as JSON</h2><pre>{_text(json.dumps(json.loads(result.to_json()), indent=1))}</pre>",
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        f"<title>{_text(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


# --- sections ----------------------------------------------------------------------------------------------------


def _summary(result: EvaluationResult) -> str:
    known = result.provenance
    lines = [
        f"{role}: {known[role]['count'] or 'unknown number of'} images, {known[role]['name']}"
        for role in ("samples", "reference")
    ]
    lines += [
        f"network {n['name']}, d = {n['dim']}, weights {n['weights_sha256'] or 'unknown'}, "
        f"preprocessing: {n['preprocessing'] or 'unknown'}"
        for n in known["networks"]
    ]
    lines.append(f"protocol {known['protocol']['name']} ({known['protocol']['source']}), {known['version']}")
    return f"<p>{'<br>'.join(map(_text, lines))}</p>"


def _scores(result: EvaluationResult) -> str:
    rows = [
        f"<tr><td>{_text(s.label)}</td><td class='n'>{s.value:.6g}</td><td class='n'>{_interval(s.interval)}</td>"
        f"<td><small>{_text(s.method)}</small></td></tr>"
        for s in result.scores
    ]
    rows += [
        f"<tr><td>{_text(left.metric)}</td><td class='n'>left out</td><td></td>"
        f"<td><small>{_text(left.reason)}</small></td></tr>"
        for left in result.left_out
    ]
    return (
        f"<h2>Scores</h2><table><tr><th></th><th>value</th><th>95% interval</th><th></th></tr>{''.join(rows)}</table>"
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.6g} to {interval[1]:.6g}"


def _outliers(result: EvaluationResult, found: dict) -> str:
    network = _text(found["network"])
    source = result.sources.get("samples")
    headings = {
        "hurt": f"Samples that hurt the distance most ({network})",
        "help": f"Samples that help the distance most ({network})",
    }
    return "".join(
        f"<h2>{heading}</h2><p><small>with the change of the distance if it were left out</small></p><div class='row'>"
        + "".join(_figure(source, e["index"], f"{e['name']}: {e['change_if_left_out']:+.3g}") for e in found[end])
        + "</div>"
        for end, heading in headings.items()
        if found[end]
    )


def _neighbours(result: EvaluationResult) -> str:
    """A row for each sample: itself, then its nearest reference images."""
    if not result.neighbours:
        return ""
    samples, reference = result.sources.get("samples"), result.sources.get("reference")
    rows = [
        "<div class='row'>"
        + _figure(samples, entry["index"], f"{entry['name']} ({entry['network']})", "first")
        + "".join(_figure(reference, n["index"], f"{n['name']}: {n['distance']:.4g}") for n in entry["nearest"])
        + "</div>"
        for entry in result.neighbours
    ]
    return f"<h2>Samples, and the nearest reference images with their distance</h2>{''.join(rows)}"


# --- pictures ----------------------------------------------------------------------------------------------------


def _figure(source, index: int, caption: str, kind: str = "") -> str:
    """One picture with its caption; the caption alone where there are no images to show."""
    picture = ""
    if source is not None:
        try:
            picture = f"<img alt='' src='data:image/png;base64,{_png(source.image(index))}'>"
        except (ValueError, OSError) as gone:
            picture = f"<small>{_text(f'cannot be shown: {gone}')}</small>"
    return f"<figure class='{kind}'>{picture}<figcaption>{_text(caption)}</figcaption></figure>"


def _png(image: Tensor) -> str:
    """uint8 [C, H, W] → base64 of a PNG no larger than twice PICTURE_SIDE."""
    from PIL import Image

    pixels = image[0].numpy() if len(image) == 1 else image.permute(1, 2, 0).numpy()
    picture = Image.fromarray(pixels)
    picture.thumbnail((2 * PICTURE_SIDE, 2 * PICTURE_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _text(text: str) -> str:
    """Escaped for text and for quoted attributes; names of files are not to be trusted."""
    return html.escape(str(text), quote=True)
