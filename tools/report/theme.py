"""How plots look: colors of recipes, and a template each for light and dark that the page applies by the reader's preference."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from .run import RecipeRun

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'
# Readable on white and on near-black, and told apart by people who see red and green alike (after Okabe and Ito).
_RECIPE_COLORS = ("#8492a6", "#2f81d6", "#14a38b", "#e0872f", "#b667c4", "#c9a411", "#52606d", "#5ab4cf")
# Markers differ too, so that recipes with the same value stay visible.
_RECIPE_SYMBOLS = ("circle", "diamond", "square", "triangle-up", "pentagon", "star")
LIMIT_COLOR = "#d64550"

_LIGHT = {"text": "#1f2933", "soft": "#5d6b7a", "grid": "#e6e9ee", "line": "#c5ccd5", "scale": ["#eef4fb", "#9dc3e8", "#3f83c4", "#123e6e"]}
_DARK = {"text": "#dfe5ec", "soft": "#97a3b1", "grid": "#2a323c", "line": "#3d4753", "scale": ["#16222f", "#1f4c78", "#3f8fd6", "#c5e2fb"]}


def colors(runs: Sequence[RecipeRun]) -> dict[str, str]:
    """One color per recipe, by its place in the report."""
    return {run.name: color(place) for place, run in enumerate(runs)}


def color(place: int) -> str:
    """The color of whatever stands at a place of a list."""
    return _RECIPE_COLORS[place % len(_RECIPE_COLORS)]


def symbols(runs: Sequence[RecipeRun]) -> dict[str, str]:
    """One marker per recipe, by its place in the report."""
    return {run.name: _RECIPE_SYMBOLS[place % len(_RECIPE_SYMBOLS)] for place, run in enumerate(runs)}


def markers(runs: Sequence[RecipeRun]) -> dict[str, dict[str, Any]]:
    """Color, symbol and size of each recipe's markers, as Plotly takes them."""
    color, symbol = colors(runs), symbols(runs)
    return {run.name: {"color": color[run.name], "symbol": symbol[run.name], "size": 7} for run in runs}


def label(text: str) -> str:
    """Text for a plot, which would otherwise take tags in it for markup."""
    return escape(text)


def templates() -> dict[str, dict[str, Any]]:
    """Plotly templates by color scheme, `light` and `dark`."""
    return {"light": _template(_LIGHT), "dark": _template(_DARK)}


def _template(palette: dict[str, Any]) -> dict[str, Any]:
    axis = {
        "gridcolor": palette["grid"],
        "linecolor": palette["line"],
        "zeroline": False,
        "automargin": True,
        "title": {"font": {"size": 12, "color": palette["soft"]}, "standoff": 10},
        "tickfont": {"size": 11, "color": palette["soft"]},
    }
    scale = palette["scale"]
    steps = [[index / (len(scale) - 1), color] for index, color in enumerate(scale)]
    bar = {"outlinewidth": 0, "thickness": 10, "tickfont": {"size": 11, "color": palette["soft"]}}
    return {
        "layout": {
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": FONT, "size": 12, "color": palette["text"]},
            "margin": {"l": 10, "r": 10, "t": 40, "b": 10},
            "hoverlabel": {"font": {"family": FONT, "size": 12}, "align": "left"},
            "scattermode": "group",  # marks of several recipes on one value stand beside each other
            "scattergap": 0.3,
            "legend": {"orientation": "h", "x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "font": {"color": palette["text"]}},
            "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": palette["line"], "activecolor": palette["soft"]},
            "coloraxis": {"colorscale": steps, "colorbar": {**bar, "title": {"font": {"size": 12, "color": palette["soft"]}}}},
            "annotationdefaults": {"font": {"color": palette["soft"], "size": 12}, "showarrow": False},
            "xaxis": axis,
            "yaxis": axis,
        }
    }
