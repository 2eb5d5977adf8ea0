"""Numbers as people read them, the same in the terminal and in the report."""

from __future__ import annotations

import math

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
MISSING = "—"


def bytes_text(size: int) -> str:
    """`17084140` gives `16.3 MiB`."""
    value, unit = float(size), 0
    while value >= 1024 and unit < len(_UNITS) - 1:
        value, unit = value / 1024, unit + 1
    return f"{size} B" if unit == 0 else f"{value:.1f} {_UNITS[unit]}"


def number_text(value: float | None, form: str = ".4g") -> str:
    """Four significant digits, or another form; what is not finite (None stands for it too) is said so."""
    return "not finite" if value is None or not math.isfinite(value) else f"{value:{form}}"


def share_text(part: float) -> str:
    """`0.125` gives `12.5 %`."""
    return f"{part:.1%}".replace("%", " %")


def seconds_text(seconds: float) -> str:
    """`75.2` gives `1 min 15 s`."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60} s"


def sign_text(comparison: str) -> str:
    """`<=` gives `≤`, `>=` gives `≥`."""
    return {"<=": "≤", ">=": "≥"}[comparison]
