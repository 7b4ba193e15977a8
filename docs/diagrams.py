"""
Draw the pictures of the docs from the tables of the code.

``python docs/diagrams.py`` writes them to docs/pictures, where a test compares them.
"""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterable, Mapping
from html import escape
from pathlib import Path
from typing import Final, NamedTuple

from aio_agentapi._journal import FREE, HAPPENED, MOVES, OPEN, Phase

ROOT: Final = Path(__file__).parents[1]
PICTURES: Final = ROOT / "docs" / "pictures"

# Where a permit can be, and what moves it: from, to, what happens, and which method
# of the gate is called then. A test carries each out on a real gate.
PERMIT: Final = (
    ("free", "in use", "a call comes", "acquire"),
    ("in use", "free", "its answer is read", "release"),
    ("in use", "detached", "its caller leaves", "detach"),
    ("detached", "free", "the late answer is read", "land, release"),
    ("detached", "lingering", "none in abandon_after", "land, give_up"),
    ("lingering", "free", "linger later", ""),
    ("in use", "kept back", "the service says 1018", "refused"),
    ("kept back", "free", "the share grows", "release"),
    ("kept back", "in use", "sent as a probe", "acquire"),
)

_INK: Final = "#1f2328"
_FAINT: Final = "#59636e"
_BLUE: Final = "#0969da"
_GREEN: Final = "#1a7f37"
_AMBER: Final = "#9a6700"
# A card of its own colour, readable on a light page and on a dark one.
_HEAD: Final = """\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" \
width="{width}" height="{height}" role="img" \
font-family="system-ui, 'Segoe UI', 'DejaVu Sans', sans-serif" font-size="14">
<title>{title}</title>
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" \
markerHeight="8" orient="auto-start-reverse">\
<path d="M0,0 L8,4 L0,8 z" fill="{faint}"/></marker></defs>
<rect x="0.5" y="0.5" width="{inner_width}" height="{inner_height}" rx="8" \
fill="#ffffff" stroke="#d1d9e0"/>
"""


class Box(NamedTuple):
    """A box with its words in the middle."""

    x: int
    y: int
    width: int
    height: int
    words: tuple[str, ...]
    ink: str = _INK

    def svg(self) -> str:
        """Return it as SVG; the first line of the words is bold."""
        shape = (
            f'<rect x="{self.x}" y="{self.y}" width="{self.width}"'
            f' height="{self.height}" rx="6" fill="#f6f8fa" stroke="{self.ink}"'
            ' stroke-width="1.5"/>'
        )
        top = self.y + self.height / 2 - 9 * (len(self.words) - 1) + 5
        middle = self.x + self.width / 2
        lines = [
            text(middle, top + 18 * i, line, self.ink, bold=i == 0, anchor="middle")
            for i, line in enumerate(self.words)
        ]
        return "\n".join([shape, *lines])


def text(
    x: float, y: float, words: str, ink: str, *, bold: bool = False, anchor: str = ""
) -> str:
    """Return a line of text."""
    weight = ' font-weight="600"' if bold else ""
    place = f' text-anchor="{anchor}"' if anchor else ""
    return (
        f'<text x="{x:g}" y="{y:g}" fill="{ink}"{weight}{place}>{escape(words)}</text>'
    )


def arrow(path: str, *, dashed: bool = False) -> str:
    """Return a line with a tip at its end."""
    dash = ' stroke-dasharray="5 4"' if dashed else ""
    return (
        f'<path d="{path}" fill="none" stroke="{_FAINT}" stroke-width="1.5"'
        f'{dash} marker-end="url(#tip)"/>'
    )


def picture(title: str, width: int, height: int, parts: Iterable[str]) -> str:
    """Return a whole picture."""
    head = _HEAD.format(
        width=width,
        height=height,
        inner_width=width - 1,
        inner_height=height - 1,
        title=escape(title),
        faint=_FAINT,
    )
    return head + "\n".join(parts) + "\n</svg>\n"


def permit() -> str:
    """Draw where a permit can be, and what moves it there."""
    boxes = {
        "in use": Box(290, 40, 180, 56, ("in use", "a call in flight"), _BLUE),
        "free": Box(730, 150, 130, 56, ("free", "for the taking"), _GREEN),
        "detached": Box(
            290, 260, 180, 56, ("in use, detached", "nobody waits for it"), _BLUE
        ),
        "lingering": Box(
            290, 420, 180, 56, ("withheld, lingering", "it was given up"), _AMBER
        ),
        "kept back": Box(
            20, 150, 184, 56, ("withheld, kept back", "others use the token"), _AMBER
        ),
    }
    # The way of each, and where its words begin.
    ways = {
        ("free", "in use"): ("M760,150 L760,54 L470,54", 500, 28),
        ("in use", "free"): ("M470,82 L740,82 L740,150", 500, 102),
        ("in use", "detached"): ("M360,96 L360,260", 372, 172),
        ("detached", "free"): ("M470,288 L780,288 L780,206", 500, 262),
        ("detached", "lingering"): ("M380,316 L380,420", 392, 362),
        ("lingering", "free"): ("M470,448 L820,448 L820,206", 500, 436),
        ("in use", "kept back"): ("M290,60 L76,60 L76,150", 84, 30),
        ("kept back", "free"): ("M100,206 L100,520 L845,520 L845,206", 500, 494),
        ("kept back", "in use"): ("M150,150 L150,84 L290,84", 160, 110),
    }
    parts: list[str] = []
    for start, end, what, method in PERMIT:
        way, x, y = ways[start, end]
        parts += [arrow(way), text(x, y, what, _INK)]
        if method:
            parts.append(text(x, y + 16, method, _FAINT))
    parts += [box.svg() for box in boxes.values()]
    return picture("Where a permit can be, and what moves it", 884, 544, parts)


# Column and row of each phase.
_PLACES: Final[Mapping[Phase, tuple[int, float]]] = {
    Phase.INTENT: (0, 1.5),
    Phase.SENT: (1, 1.5),
    Phase.DONE: (2, 0),
    Phase.REFUSED: (2, 1),
    Phase.NOT_SENT: (2, 2),
    Phase.UNKNOWN: (2, 3),
    Phase.NEEDS_PERSON: (3, 4.3),
    Phase.CONFIRMED: (4, 2.6),
    Phase.ABSENT: (4, 3.6),
}


def phases() -> str:
    """Draw the phases of a payment, and which follow which."""
    known = {
        **dict.fromkeys(HAPPENED, ("it happened", _GREEN)),
        **dict.fromkeys(FREE, ("it did not", _FAINT)),
        **dict.fromkeys(OPEN, ("it may have", _AMBER)),
    }
    boxes: dict[Phase, Box] = {}
    for phase in Phase:
        column, row = _PLACES[phase]
        words, ink = known.get(phase, ("", _BLUE))
        lines = (str(phase), words) if words else (str(phase),)
        boxes[phase] = Box(24 + 184 * column, round(24 + 72 * row), 132, 52, lines, ink)
    parts: list[str] = []
    for phase, box in boxes.items():
        for after in MOVES[phase]:
            end = boxes[after]
            x, y = box.x + box.width, box.y + box.height // 2
            to_x, to_y = end.x, end.y + end.height // 2
            parts.append(
                arrow(f"M{x},{y} C{x + 46},{y} {to_x - 46},{to_y} {to_x},{to_y}")
            )
    parts += [box.svg() for box in boxes.values()]
    return picture("The phases of a payment", 916, 412, parts)


def floors() -> list[list[str]]:
    """Return the modules of each floor, the roof first, as the contract has them."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    contract = project["tool"]["importlinter"]["contracts"][0]
    return [layer.split(" | ") for layer in contract["layers"]]


def summary(module: str) -> str:
    """Return the first line of a module's docstring."""
    path = ROOT / "aio_agentapi" / module
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    told = ast.get_docstring(ast.parse(file.read_text())) or ""
    return told.splitlines()[0].replace("``", "").replace(":mod:", "").replace("`", "")


def layers() -> str:
    """Draw the floors of the house; each imports only what is below it."""
    parts: list[str] = []
    y = 20
    for floor in floors():
        height = 24 * len(floor) + 8
        parts.append(
            f'<rect x="52" y="{y}" width="812" height="{height}" rx="6" fill="#f6f8fa"'
            f' stroke="{_BLUE}"/>'
        )
        for i, module in enumerate(floor):
            line = y + 21 + 24 * i
            parts.append(text(66, line, module, _BLUE, bold=True))
            parts.append(text(190, line, summary(module), _INK))
        y += height + 8
    parts.append(arrow(f"M30,28 L30,{y - 16}"))
    parts.append(
        f'<text transform="translate(22 {y / 2:g}) rotate(-90)" fill="{_FAINT}"'
        ' text-anchor="middle">imports point down</text>'
    )
    return picture("The floors of the house", 884, y + 12, parts)


def pictures() -> dict[str, str]:
    """Return the text of each picture by the name of its file."""
    return {
        "permit.svg": permit(),
        "phases.svg": phases(),
        "layers.svg": layers(),
    }


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, drawn in pictures().items():
        (PICTURES / name).write_text(drawn)
        print(PICTURES / name)
