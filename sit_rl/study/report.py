"""The report of a study: study.md, study.csv, study.png and study.html."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from fastfid.pages.pictures import as_base64
from fastfid.pages.templates import template
from sit_rl.files.atomic import write_text
from sit_rl.runs.summary import SAMPLERS, percent
from sit_rl.study.figure import draw
from sit_rl.study.plan import Row, Study
from sit_rl.study.results import QUALITIES, VERDICT_RULE, Found, Line, spread

HEAD = (
    "row", "matched by", "steps", "images", "evaluations", "seeds", "rewarded FD, ODE", "SDE", "never-seen FD, ODE",
    "SDE", "recall, ODE", "SDE", "coverage, ODE", "SDE", "against the control",
)  # fmt: skip
NOTE = (
    "Changes against the untrained model, mean ± standard deviation over the seeds, judged on held-out real images. "
    "Rewarded: mean over the networks of the row's reward. Never seen: mean over the networks that no row of the study "
    "is rewarded by. Evaluations: velocity evaluations of rollouts, reference sets and updates. Rows without steps are "
    "not trained."
)


def write_study(study: Study, lines: Sequence[Line], missing: Sequence[str], out: Path) -> Path:
    """Write the four files to `out`; returns study.html. `missing` names the runs without a result."""
    rows = [cells(line) for line in lines]
    notes = [NOTE, f"Control: {study.control}. {VERDICT_RULE}"]
    if missing:
        notes.append(f"{len(missing)} runs have no result yet: {'; '.join(missing)}.")
    picture = draw(lines)
    table = "\n".join("| " + " | ".join(row) + " |" for row in [list(HEAD), ["---"] * len(HEAD), *rows])
    write_text(out / "study.md", f"# {study.name}\n\n{table}\n\n" + "\n\n".join(notes) + "\n\n![figure](study.png)\n")
    write_text(out / "study.csv", csv_text([each for line in lines for each in line.found]))
    (out / "study.png").write_bytes(picture)
    page = template("sit_rl.study", "study.html.jinja").render(
        title=study.name, refresh=0, head=HEAD, rows=rows, notes=notes, picture=as_base64(picture)
    )
    write_text(out / "study.html", page)
    return out / "study.html"


def cells(line: Line) -> list[str]:
    """The cells of one line of the table."""
    row, first = line.row, line.found[0]
    counts = [f"{row.config.steps}", f"{first.images:,.0f}", f"{first.compute:,.0f}"] if row.trained else ["–"] * 3
    columns = zip(*(changes(found) for found in line.found), strict=True)
    return [row.name, _matched(row), *counts, str(len(line.found)), *map(_spread, columns), line.verdict]


def changes(found: Found) -> list[float | None]:
    """The changes of one run in the order of the columns: rewarded, never seen, recall, coverage, each by sampler."""
    return [part[s] for part in (found.rewarded, found.unseen, *found.qualities.values()) for s in SAMPLERS]


def _matched(row: Row) -> str:
    return " and ".join(row.matched) or "–"


def _spread(values: Sequence[float | None]) -> str:
    mean, deviation = spread(values)
    return percent(mean) + ("" if deviation is None else f" ± {deviation:.1%}")


def csv_text(found: Sequence[Found]) -> str:
    """One line a run, with changes as fractions."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [f"{what}_{s}" for what in ("rewarded_fd", "never_seen_fd", *QUALITIES) for s in SAMPLERS]
    writer.writerow(["row", "matched_by", "steps", "seed", "images", "evaluations", *names])
    for f in found:
        head = [f.row.name, "+".join(f.row.matched), f.row.config.steps if f.row.trained else 0, f.seed]
        values = ["" if value is None else f"{value:.6f}" for value in changes(f)]
        writer.writerow([*head, round(f.images), round(f.compute), *values])
    return text.getvalue()
