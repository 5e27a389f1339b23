"""The chart in the README, which is an SVG without the use of a library."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, BAR, LEFT, RIGHT = 860, 16, 290, 70
COLOURS = {"ours": "#2a78d6", "other": "#b5b3ac"}


def draw(path: Path, title: str, medians: Mapping[tuple[str, str], float]) -> None:
    """Write a panel for each step, with its own scale and a bar for each contestant."""
    steps = list(dict.fromkeys(step for _, step in medians))
    parts: list[str] = []
    y = 54.0
    for step in steps:
        rows = {name: wall for (name, each), wall in medians.items() if each == step}
        parts.append(_text(12, y, step, "font-weight='bold'"))
        y += 8
        longest = max(rows.values())
        for name, wall in rows.items():
            width = (WIDTH - LEFT - RIGHT) * wall / longest
            colour = COLOURS["ours" if "collectfast-storage" in name else "other"]
            parts.append(_text(LEFT - 8, y + 12, name, "text-anchor='end'"))
            parts.append(
                f"<rect x='{LEFT}' y='{y:.0f}' width='{max(width, 1):.1f}' "
                f"height='{BAR - 4}' rx='2' fill='{colour}'/>"
            )
            parts.append(_text(LEFT + width + 6, y + 11, f"{wall:.2f} s"))
            y += BAR
        y += 26
    head = _text(12, 24, f"collectstatic and its alternatives, seconds: {title}")
    path.write_text(
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y:.0f}' "
        "font-family='sans-serif' font-size='12'>"
        f"<rect width='100%' height='100%' fill='#ffffff'/>{head}"
        f"{''.join(parts)}</svg>\n"
    )


def _text(x: float, y: float, text: str, more: str = "") -> str:
    return f"<text x='{x:.0f}' y='{y:.0f}' fill='#222' {more}>{escape(text)}</text>"
