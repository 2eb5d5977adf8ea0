"""Horizontal bars on a logarithmic axis as a small SVG file that reads well on light and dark pages."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from ...core.artifacts import write_text
from ..report.theme import FONT, color

_LABEL, _BAR, _VALUE, _ROW, _TOP = 190, 420, 80, 20, 44  # pixels
_INK = "#7a8694"  # between the inks of the light and the dark page


@dataclass(frozen=True)
class Bars:
    """A title, and names with positive values."""

    title: str
    rows: Sequence[tuple[str, float]]


def write_bars(bars: Bars, path: Path) -> None:
    """Write the file; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    write_text(path, bars_svg(bars))


def bars_svg(bars: Bars) -> str:
    """The picture as text. Bars begin at the whole decade below the smallest value; zeros have none."""
    logs = [math.log10(value) for _, value in bars.rows if value > 0]
    first, last = (math.floor(min(logs)), max(math.ceil(max(logs)), math.floor(min(logs)) + 1)) if logs else (0, 1)
    height, width = _TOP + _ROW * len(bars.rows) + 10, _LABEL + _BAR + _VALUE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'font-family="{escape(FONT)}" font-size="12" fill="{_INK}">',
        f'<text x="0" y="14" font-weight="bold">{escape(bars.title)}</text>',
    ]
    for decade in range(first, last + 1):
        x = _LABEL + _BAR * (decade - first) / (last - first)
        parts.append(f'<line x1="{x:.1f}" y1="{_TOP - 6}" x2="{x:.1f}" y2="{height}" stroke="{_INK}" stroke-opacity="0.3"/>')
        parts.append(f'<text x="{x:.1f}" y="{_TOP - 12}" text-anchor="middle" font-size="10">{10.0**decade:g}</text>')
    for place, (name, value) in enumerate(bars.rows):
        y = _TOP + _ROW * place
        length = _BAR * (math.log10(value) - first) / (last - first) if value > 0 else 0.0
        parts.append(f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LABEL}" y="{y + 2}" width="{length:.1f}" height="13" fill="{color(1)}"/>')
        parts.append(f'<text x="{_LABEL + length + 5:.1f}" y="{y + 12}">{value:.3g}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"
