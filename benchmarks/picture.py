"""A picture of figures: bars with their range, as SVG that needs no library."""

from __future__ import annotations

import html
import statistics
from collections.abc import Mapping, Sequence

WIDTH, BAR, GAP, LEFT, RIGHT = 720, 22, 12, 150, 120


def draw(
    title: str, unit: str, subtitle: str, figures: Mapping[str, Sequence[float]]
) -> str:
    """
    Return a picture of medians, with a line from the least to the most.

    Args:
        title: Above the bars.

        unit: Of the figures.

        subtitle: Under the title.

        figures: Of each bar, one or more.
    """
    most = max(max(values) for values in figures.values())
    room = WIDTH - LEFT - RIGHT
    height = 64 + len(figures) * (BAR + GAP)
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" font-family="sans-serif" role="img">'
        ),
        f"<title>{html.escape(title)}</title>",
        f'<rect width="{WIDTH}" height="{height}" rx="6" fill="#ffffff"/>',
        '<text x="16" y="26" font-size="16" fill="#1b1f24">',
        f"{html.escape(title)}</text>",
        (
            f'<text x="16" y="46" font-size="12" fill="#57606a">'
            f"{html.escape(subtitle)}. Medians; the line is the range.</text>"
        ),
    ]
    for number, (name, values) in enumerate(figures.items()):
        top = 60 + number * (BAR + GAP)
        median = statistics.median(values)
        low, high = (LEFT + value / most * room for value in (min(values), max(values)))
        middle = top + BAR / 2
        fill = "#1a7f37" if name == "this library" else "#8c959f"
        parts += [
            (
                f'<text x="{LEFT - 8}" y="{middle + 4}" font-size="13" fill="#1b1f24" '
                f'text-anchor="end">{html.escape(name)}</text>'
            ),
            (
                f'<rect x="{LEFT}" y="{top}" width="{median / most * room:.1f}" '
                f'height="{BAR}" fill="{fill}"/>'
            ),
            (
                f'<line x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}" '
                'stroke="#1b1f24" stroke-width="2"/>'
            ),
            (
                f'<text x="{high + 8:.1f}" y="{middle + 4}" font-size="13" '
                f'fill="#1b1f24">{median:,.0f} {html.escape(unit)}</text>'
            ),
        ]
    return "\n".join([*parts, "</svg>", ""])
