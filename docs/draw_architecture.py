"""Draws the rooms of both packages and the imports between them: docs/architecture.svg.

    python -m docs.draw_architecture

Rooms stand on floors: a room's floor is the length of the longest path of imports below it.  Arrows that a longer path
implies are left out.  Inside a floor, rooms are ordered by the positions of their neighbours, which leaves few
crossings (Sugiyama, Tagawa & Toda 1981).  An arrow across several floors passes through an invisible place on each.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from html import escape

from docs.import_graph import PACKAGES, ROOT, arrows, floors, imports, room_of, rooms, without_implied

PICTURE = ROOT / "docs" / "architecture.svg"

# Lengths in pixels.
CHARACTER, LINE, PADDING = 6.6, 15, 9  # of a file's name in 12-pixel type; between lines; inside a box
WRAP = 28  # characters of a line of file names
GAP, PASSAGE = 22, 12  # between boxes; width of an invisible place
BETWEEN_FLOORS, BETWEEN_PACKAGES, MARGIN = 40, 70, 24
TITLE = 40  # height of a package's title
SWEEPS = 40  # repetitions of ordering and placing: nothing moves any more after some 20

FILLS = {"fastfid": "#e8f0f8", "sit_rl": "#fbeee6"}
LINES = {"fastfid": "#2166ac", "sit_rl": "#b3582b"}


@dataclass
class Place:
    """A box on a floor, or an invisible place of an arrow; x is its centre."""

    name: str
    floor: int
    width: float
    lines: list[str] = field(default_factory=list)
    doors: list[str] = field(default_factory=list)
    above: list[Place] = field(default_factory=list)
    below: list[Place] = field(default_factory=list)
    x: float = 0.0

    @property
    def height(self) -> float:
        """Of the box: its name, the files, the rooms of the other package that it uses."""
        return 2 * PADDING + LINE * (1 + len(self.lines) + len(self.doors)) - 3


def wrapped(words: tuple[str, ...] | list[str], first: str = "") -> list[str]:
    """Words separated by commas in lines of at most WRAP characters."""
    lines = [first] if first else []
    for word in words:
        if lines and (lines[-1] == first or len(lines[-1]) + len(word) < WRAP):
            lines[-1] += (" " if lines[-1] == first else ", ") + word
        else:
            if lines:
                lines[-1] += ","
            lines.append(word)
    return lines


def doors_of(package: str) -> dict[str, set[str]]:
    """Room → rooms of the other package that it imports."""
    found: dict[str, set[str]] = {}
    for each in imports(package):
        if "." in each.target and not each.target.startswith(f"{package}."):
            found.setdefault(room_of(each.source), set()).add(room_of(each.target).partition(".")[2])
    return found


def placed(package: str) -> list[list[Place]]:
    """The floors of a package, lowest first: boxes and invisible places with their x, which begin at 0."""
    names, edges = set(rooms(package)), set(arrows(package))
    floor, doors = floors(names, edges), doors_of(package)
    boxes = {}
    for room, files in rooms(package).items():
        other = sorted(doors.get(room, ()))
        lines, more = wrapped(files), wrapped(other, "→ fastfid:") if other else []
        widest = max(len(line) for line in (*lines, *more, room.split(".")[1] + "    "))
        boxes[room] = Place(room, floor[room], widest * CHARACTER + 2 * PADDING, lines, more)
    rows: list[list[Place]] = [[] for _ in range(max(floor.values()) + 1)]
    for box in boxes.values():
        rows[box.floor].append(box)
    for source, target in sorted(without_implied(edges)):
        upper = boxes[source]
        for level in range(floor[source] - 1, floor[target], -1):
            passage = Place(f"{source} → {target}", level, PASSAGE)
            rows[level].append(passage)
            _connect(upper, passage)
            upper = passage
        _connect(upper, boxes[target])
    _order(rows)
    _spread(rows)
    return rows


def _connect(upper: Place, lower: Place) -> None:
    upper.below.append(lower)
    lower.above.append(upper)


def _order(rows: list[list[Place]]) -> None:
    """Sort every floor by the mean place of the neighbours below, then above, in turns."""
    for sweep in range(SWEEPS):
        for row in rows if sweep % 2 else rows[::-1]:
            for neighbours in ("below", "above") if sweep % 2 else ("above", "below"):
                places = {id(place): i / len(other) for other in rows for i, place in enumerate(other)}

                def middle(place: Place, of: str = neighbours, places: dict[int, float] = places) -> float:
                    near = [places[id(other)] for other in getattr(place, of)]
                    return sum(near) / len(near) if near else places[id(place)]

                if any(getattr(place, neighbours) for place in row):
                    row.sort(key=middle)
                    break


def _spread(rows: list[list[Place]]) -> None:
    """Give every place an x: near the mean of its neighbours, as far as the order and the widths allow."""
    for row in rows:
        _separate(row)
    for _ in range(SWEEPS):
        for row in (*rows, *rows[::-1]):
            for place in row:
                near = [other.x for other in (*place.above, *place.below)]
                place.x = sum(near) / len(near) if near else place.x
            _separate(row)
    left = min(place.x - place.width / 2 for row in rows for place in row)
    for place in (place for row in rows for place in row):
        place.x -= left


def _separate(row: list[Place]) -> None:
    """Move places apart until none overlap, half of the way from the left and half from the right."""
    distances = [(a.width + b.width) / 2 + GAP * (0.5 if not (a.lines and b.lines) else 1) for a, b in _pairs(row)]
    rightward, leftward = [place.x for place in row], [place.x for place in row]
    for i, distance in enumerate(distances):
        rightward[i + 1] = max(rightward[i + 1], rightward[i] + distance)
    for i, distance in reversed(list(enumerate(distances))):
        leftward[i] = min(leftward[i], leftward[i + 1] - distance)
    for place, a, b in zip(row, rightward, leftward, strict=True):
        place.x = (a + b) / 2


def _pairs(row: list[Place]) -> list[tuple[Place, Place]]:
    return list(zip(row, row[1:], strict=False))


# --- SVG -------------------------------------------------------------------------------------------------------------


def draw() -> str:
    """The picture as SVG: sit_rl on the left, fastfid, which it uses, on the right."""
    parts, left, bottom = [], float(MARGIN), 0.0
    for package in reversed(PACKAGES):
        rows = placed(package)
        parts.append(text(left, MARGIN + 20, package, LINES[package], 24, bold=True))
        tops, top = {}, float(MARGIN + TITLE)
        for row in rows[::-1]:
            tops[row[0].floor] = top
            top += max(place.height for place in row) + BETWEEN_FLOORS
        everything = [place for row in rows for place in row]
        for place in everything:
            place.x += left
        parts += [arrow(place, target, tops, LINES[package]) for place in everything for target in place.below]
        parts += [box(place, tops[place.floor], package) for place in everything if "→" not in place.name]
        left = max(place.x + place.width / 2 for place in everything) + BETWEEN_PACKAGES
        bottom = max(bottom, top - BETWEEN_FLOORS + MARGIN)
    width = left - BETWEEN_PACKAGES + MARGIN
    size = f'width="{width:.0f}" height="{bottom:.0f}" viewBox="0 0 {width:.0f} {bottom:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="Helvetica, Arial, sans-serif">'
    marker = "".join(
        f'<marker id="{package}" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        f'<path d="M0 0 L8 4 L0 8 z" fill="{colour}"/></marker>'
        for package, colour in LINES.items()
    )
    background = '<rect width="100%" height="100%" fill="white"/>'
    return "\n".join([head, f"<defs>{marker}</defs>", background, *parts, "</svg>", ""])


def text(x: float, y: float, words: str, colour: str, size: int, bold: bool = False) -> str:
    """One line of text."""
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}" font-size="{size}"{weight}>{escape(words)}</text>'


def box(place: Place, top: float, package: str) -> str:
    """A room: its name, its files, the rooms of the other package that it uses."""
    left = place.x - place.width / 2
    parts = [
        f'<rect x="{left:.0f}" y="{top:.0f}" width="{place.width:.0f}" height="{place.height:.0f}" rx="5" '
        f'fill="{FILLS[package]}" stroke="{LINES[package]}"/>',
        text(left + PADDING, top + PADDING + 10, place.name.split(".")[1], "#111", 14, bold=True),
    ]
    lines = [(line, "#444") for line in place.lines] + [(line, LINES["fastfid"]) for line in place.doors]
    for i, (line, colour) in enumerate(lines, start=1):
        parts.append(text(left + PADDING, top + PADDING + 10 + i * LINE, line, colour, 12))
    return "".join(parts)


def arrow(upper: Place, lower: Place, tops: dict[int, float], colour: str) -> str:
    """A curve from the bottom of one place to the top of the next one below; invisible places are passed straight."""
    passing, ending = "→" in upper.name, "→" not in lower.name
    x1, x2 = upper.x, lower.x
    y1 = tops[upper.floor] + (0 if passing else upper.height)
    y2 = tops[lower.floor]
    bottom = tops[upper.floor - 1] - BETWEEN_FLOORS  # of the upper row, which a passage crosses straight
    down = f"V{bottom:.0f}"
    bend = (y2 - bottom) / 2
    curve = f"C{x1:.0f} {bottom + bend:.0f} {x2:.0f} {y2 - bend:.0f} {x2:.0f} {y2 - (2 if ending else 0):.0f}"
    mark = f' marker-end="url(#{upper.name.split(".")[0]})"' if ending else ""
    path = f"M{x1:.0f} {y1:.0f} {down} {curve}"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.1" opacity="0.75"{mark}/>'


if __name__ == "__main__":
    PICTURE.write_text(draw())
    print(PICTURE.relative_to(ROOT))
