"""report.html of an evaluation: one self-contained file, everything shown in it escaped.

Scores with their intervals, precision and recall within each class, the samples that hurt and help the Fréchet distance
most (by what leaving each out would change), the nearest reference images of some samples, and the whole provenance.
Pictures are read again from their sources, a few dozen of them, and embedded.
"""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path

from torch import Tensor

from fastfid.evaluation.results import EvaluationResult, Score, left_out_lines, worst_first
from fastfid.runtime.atomic_files import write_atomically

PICTURE_SIDE = 96  # CSS pixels a picture is shown at; embedded ones are at most twice that, for sharp screens

# Which way is good, beside a score's name.
BETTER = {
    **dict.fromkeys(("fd", "sfid", "fd_infinity", "kid", "mmd"), "lower is better"),
    **dict.fromkeys(("is", "precision", "recall", "density", "coverage"), "higher is better"),
}

STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:66rem;margin:2rem auto;padding:0 1rem;color:#1d2330}
h1{font-size:1.5rem;line-height:1.25;overflow-wrap:anywhere}h2{font-size:1.15rem;margin:2.2rem 0 .3rem}
table{border-collapse:collapse;margin:.4rem 0}
td,th{padding:.3rem .9rem .3rem 0;text-align:left;border-bottom:1px solid #e3e6ea;vertical-align:top}
th{font-weight:600;color:#5a6372;font-size:13px}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;
white-space:nowrap}.facts td{border:0;padding:.05rem .9rem .05rem 0;overflow-wrap:anywhere}.facts td:first-child,
small,.note{color:#5a6372}small{font-size:12.5px;line-height:1.35;display:inline-block}.note{margin:.1rem 0 .6rem}
.row{display:flex;flex-wrap:wrap;gap:.7rem;margin:.5rem 0 1rem;max-width:43rem}
figure{margin:0;width:6.4rem}figcaption{font-size:11px;line-height:1.3;overflow-wrap:anywhere;color:#444c59}
img{width:6.4rem;height:6.4rem;object-fit:contain;image-rendering:pixelated;background:#eef0f3;border-radius:3px}
.first{border-right:2px solid #b9c0ca;padding-right:.7rem}b{font-variant-numeric:tabular-nums}
.worse{color:#a32020}.good{color:#146c43}svg{display:block;margin-top:.35rem}
details{margin-top:2rem}summary{cursor:pointer;color:#5a6372}
pre{background:#f4f5f7;padding:1rem;overflow:auto;font-size:12px}
.warning{background:#fff4d6;border-left:4px solid #e0a800;padding:.4rem .8rem;margin:.4rem 0}
@media print{details{display:none}}"""


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
        _facts(result),
        "".join(f"<p class='warning'>{_text(warning)}</p>" for warning in result.warnings),
        _scores(result),
        *(_classes(result, network) for network in dict.fromkeys(entry["network"] for entry in result.classes)),
        *(_outliers(result, found) for found in result.outliers),
        *(_neighbours(result, network) for network in dict.fromkeys(entry["network"] for entry in result.neighbours)),
        f"<details><summary>Everything, as JSON</summary><pre>{_text(result.to_json(indent=1))}</pre></details>",
    ]
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width,initial-scale=1'>"
        f"<title>{_text(title)}</title><style>{STYLE}</style>{''.join(parts)}</html>\n"
    )


# --- sections ----------------------------------------------------------------------------------------------------


def _facts(result: EvaluationResult) -> str:
    """Who was compared with whom, in which network, by which tool."""
    known = result.provenance
    facts = [
        (role, f"{known[role]['count'] or 'unknown number of'} images, {known[role]['name']}")
        for role in ("samples", "reference")
    ]
    for n in known["networks"]:
        weights = (n["weights_sha256"] or "unknown")[:12]
        facts.append(("network", f"{n['name']}, d = {n['dim']}, weights {weights}"))
        facts.append(("preprocessing", n["preprocessing"] or "unknown"))
    facts.append(("protocol", f"{known['protocol']['name']} ({known['protocol']['source']}), {known['version']}"))
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{_text(fact)}</td></tr>" for name, fact in facts)
    return f"<table class='facts'>{rows}</table>"


def _scores(result: EvaluationResult) -> str:
    """The table of scores with intervals drawn to their own scale, then what was left out."""
    rows = [
        f"<tr><td>{_text(result.label(s))}<br><small>{BETTER[s.metric]}</small></td>"
        f"<td class='n'><b>{s.value:.5g}</b></td><td class='n'>{_interval(s.interval)}</td><td>{_whisker(s)}</td>"
        f"<td><small>{_text(s.method)}</small></td></tr>"
        for s in result.scores
    ]
    left_out = "".join(f"<li><small>{_text(line)}</small></li>" for line in left_out_lines(result.left_out))
    return (
        "<h2>Scores</h2><table><tr><th></th><th class='n'>value</th><th class='n'>95% interval</th>"
        f"<th>value ± 25%</th><th>how</th></tr>{''.join(rows)}</table>"
        + (f"<p class='note'>Left out</p><ul>{left_out}</ul>" if left_out else "")
    )


def _interval(interval: tuple[float, float] | None) -> str:
    return "" if interval is None else f"{interval[0]:.4g} to {interval[1]:.4g}"


def _whisker(score: Score) -> str:
    """The interval on an axis from 75% to 125% of the value, with open ends where it goes beyond."""
    if score.interval is None or score.value == 0:
        return ""
    width, middle, half = 120, 60, abs(score.value) / 4
    ends = [middle + (end - score.value) / half * middle for end in score.interval]
    low, high = max(ends[0], 0), min(ends[1], width)
    caps = "".join(f"M{end:.1f} 3v8" for end in ends if 0 <= end <= width)
    return (
        f"<svg width='{width}' height='14' role='img' aria-label='{_interval(score.interval)}'>"
        f"<path d='M0 7h{width}' stroke='#e3e6ea'/><path d='M{low:.1f} 7H{high:.1f}{caps}' stroke='#3b6fb6' "
        f"stroke-width='2' fill='none'/><circle cx='{middle}' cy='7' r='3.5' fill='#1d3f72'/></svg>"
    )


def _classes(result: EvaluationResult, network: str) -> str:
    """Precision and recall within each class, the worst classes first."""
    entries = worst_first([entry for entry in result.classes if entry["network"] == network])
    rows = "".join(
        f"<tr><td>{_text(e['class'])}</td><td class='n'>{e['samples']}</td><td class='n'>{e['reference']}</td>"
        + "".join(f"<td class='n'>{_share(e[name], e[f'{name}_interval'])}</td>" for name in ("precision", "recall"))
        + f"<td class='n'>{e['density']:.3f}</td><td class='n'>{e['coverage']:.3f}</td></tr>"
        for e in entries
    )
    heads = "".join(
        f"<th class='n'>{name}</th>" for name in ("samples", "reference", "precision", "recall", "density", "coverage")
    )
    return (
        f"<h2>Within each class ({_text(network)})</h2><p class='note'>Samples of a class against reference images of "
        f"the same class, k = {entries[0]['nearest_k']}, with 95% intervals, the balls taken as fixed; the worst "
        "classes first.</p>"
        f"<table><tr><th>class</th>{heads}</tr>{rows}</table>"
    )


def _share(value: float, interval: tuple[float, float]) -> str:
    low, high = interval
    return f"<b>{value:.3f}</b> <small>{low:.3f} to {high:.3f}</small>"


def _outliers(result: EvaluationResult, found: dict) -> str:
    network, source = _text(found["network"]), result.sources.get("samples")
    ends = {
        "hurt": ("hurt", "worse", "Without the image the distance would fall by the number below it."),
        "help": ("help", "good", "Without the image the distance would rise by the number below it."),
    }
    return "".join(
        f"<h2>Samples that {word} the distance most ({network})</h2><p class='note'>{note}</p><div class='row'>"
        + "".join(_figure(source, e, f"{e['change_if_left_out']:+.3g}", kind) for e in found[end])
        + "</div>"
        for end, (word, kind, note) in ends.items()
        if found[end]
    )


def _neighbours(result: EvaluationResult, network: str) -> str:
    """A row for each sample: itself, then its nearest reference images."""
    samples, reference = result.sources.get("samples"), result.sources.get("reference")
    rows = [
        f"<div class='row'><div class='first'>{_figure(samples, entry, 'sample')}</div>"
        + "".join(_figure(reference, near, f"{near['distance']:.4g}") for near in entry["nearest"])
        + "</div>"
        for entry in result.neighbours
        if entry["network"] == network
    ]
    return (
        f"<h2>Nearest reference images ({_text(network)})</h2><p class='note'>A sample, then the reference images with "
        "the nearest features and their Euclidean distance: samples that hurt, that help, and some from all over. "
        f"A distance of 0 is a copy.</p>{''.join(rows)}"
    )


# --- pictures ----------------------------------------------------------------------------------------------------


def _figure(source, entry: dict, number: str, kind: str = "") -> str:
    """One picture of {index, name} with a number and its name; these alone where there are no images to show."""
    picture = ""
    if source is not None:
        try:
            picture = f"<img alt='' src='data:image/png;base64,{_png(source.image(entry['index']))}'>"
        except (ValueError, OSError) as gone:
            picture = f"<small>{_text(f'cannot be shown: {gone}')}</small>"
    caption = f"<b class='{kind}'>{number}</b><br>{_text(entry['name'])}"
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


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
