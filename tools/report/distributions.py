"""Plots of what calibration saw: weights, activations, expert coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...core.precision import FP16_MAX, FP16_WARN
from ...models.layout import label_of
from .layers import LayerRow, Part, distinct, of_recipes, rows_of
from .plot import Plot, floor_of, log_axis, rows_axis, rows_height
from .run import RecipeRun
from .theme import LIMIT_COLOR, label

_VISIBLE_SHARE = 1e-6  # the axis starts where a layer has this share of its values; smaller values can be reached by zooming out


def distribution_plots(runs: Sequence[RecipeRun], part: Part) -> list[Plot]:
    """Per group of recipes with equal statistics: histogram, AbsP99 and AbsMax, variance, one row per layer."""
    plots = []
    for number, (members, (edges, rows)) in enumerate(distinct(runs, lambda run: _seen(run, part))):
        if rows:
            plots.append(_distribution(f"{part}-{number}", part, of_recipes(members, runs), edges, rows))
    return plots


def coverage_plots(runs: Sequence[RecipeRun]) -> list[Plot]:
    """Tokens the router sent to each expert during calibration, per group of recipes that saw the same."""
    plots = []
    for number, (members, (experts, minimum)) in enumerate(distinct(runs, _coverage_of)):
        if experts:
            plots.append(_coverage(f"coverage-{number}", of_recipes(members, runs), experts, minimum))
    return plots


def _seen(run: RecipeRun, part: Part) -> tuple[tuple[float, ...], list[LayerRow]]:
    """What there was to quantize; how well that went differs between recipes, the values do not."""
    edges, rows = rows_of(run, part)
    return edges, [replace(row, snr_db=None, score_error=None) for row in rows]


def _distribution(slug: str, part: Part, recipes: str, edges: tuple[float, ...], rows: Sequence[LayerRow]) -> Plot:
    names = [label(row.label) for row in rows]
    figure = make_subplots(1, 3, shared_yaxes=True, horizontal_spacing=0.02, column_widths=[0.56, 0.24, 0.2])
    figure.add_trace(_histograms(names, edges, rows), 1, 1)
    magnitudes = {"AbsP99": [row.absp99 for row in rows], "AbsMax": [row.absmax for row in rows]}
    for (name, values), symbol in zip(magnitudes.items(), ("circle-open", "circle"), strict=True):
        figure.add_trace(_dots(name, names, values, symbol), 1, 2)
    figure.add_trace(_dots("variance", names, [row.variance for row in rows], "diamond"), 1, 3)
    if part == "activations":
        for limit in (FP16_WARN, FP16_MAX):
            figure.add_vline(limit, line={"color": LIMIT_COLOR, "width": 1, "dash": "dot"}, row=1, col=2)
    seen = [value for values in magnitudes.values() for value in values] + ([FP16_MAX] if part == "activations" else [])
    figure.update_xaxes(log_axis("|x|", _visible(edges, rows)), row=1, col=1)
    figure.update_xaxes(log_axis("|x|", seen, ticks=5), row=1, col=2)
    figure.update_xaxes(log_axis("variance", [row.variance for row in rows], ticks=5), row=1, col=3)
    figure.update_yaxes(rows_axis(len(rows)))
    figure.update_layout(height=rows_height(len(rows), per_row=16), coloraxis=_share_axis())
    caption = (
        f"Share of the {part} by magnitude, one row per tensor; a block's experts are one row (largest AbsMax and AbsP99, mean variance)."
    )
    if part == "activations":
        caption += f" Red lines: the warning at {FP16_WARN:g} and the end of FP16."
    return Plot(slug, f"{part.capitalize()} per layer{recipes}", caption, figure)


def _histograms(names: list[str], edges: tuple[float, ...], rows: Sequence[LayerRow]) -> go.Heatmap:
    shares = [[100 * count / max(1, sum(row.histogram)) for count in row.histogram] for row in rows]
    return go.Heatmap(
        x=[10.0**edge for edge in edges],
        y=names,
        z=[[math.log10(share) if share > 0 else None for share in line] for line in shares],
        customdata=shares,
        coloraxis="coloraxis",
        hoverongaps=False,
        ygap=1,
        hovertemplate="%{y}<br>|x| near %{x:.2g}: %{customdata:.3g} % of values<extra></extra>",
    )


def _share_axis() -> dict[str, Any]:
    ticks = (-4, -2, 0, 1, 2)
    title = {"text": "% of<br>values"}
    return {
        "colorbar": {"title": title, "tickvals": ticks, "ticktext": [f"{10.0**t:g}" for t in ticks], "len": 0.6},
        "cmin": -4,
        "cmax": 1.7,
    }


def _dots(name: str, names: list[str], values: list[float], symbol: str) -> go.Scatter:
    floor = floor_of(values)
    return go.Scatter(
        x=[max(value, floor) for value in values],
        y=names,
        customdata=values,
        mode="markers",
        name=name,
        marker={"symbol": symbol, "size": 7, "color": "#2f81d6"},
        hovertemplate="%{y}<br>" + name + " %{customdata:.4g}<extra></extra>",
    )


def _visible(edges: tuple[float, ...], rows: Sequence[LayerRow]) -> tuple[float, float]:
    """Range of magnitudes that holds nearly all values of every row; the first bin also takes zeros, so it does not count."""
    used = {
        number
        for row in rows
        for number, count in enumerate(row.histogram)
        if number and count > _VISIBLE_SHARE * max(1, sum(row.histogram))
    }
    first, last = (edges[min(used)], edges[max(used) + 1]) if used else (edges[0], edges[-1])
    return 10.0**first, 10.0**last


_Coverage = tuple[tuple[tuple[str, tuple[int, ...]], ...], int]


def _coverage_of(run: RecipeRun) -> _Coverage:
    minimum = run.records["calibrated"].options.get("min_routed_tokens", 0)
    return tuple((part.layer, part.routed_tokens) for part in run.quantization.experts), int(minimum)


def _coverage(slug: str, recipes: str, experts: tuple[tuple[str, tuple[int, ...]], ...], minimum: int) -> Plot:
    layers = [label(label_of(layer)) for layer, _ in experts]
    counts = [list(tokens) for _, tokens in experts]
    figure = go.Figure(
        go.Heatmap(
            z=counts,
            y=layers,
            x=list(range(max(map(len, counts)))),
            coloraxis="coloraxis",
            xgap=2,
            ygap=2,
            text=[[f"{tokens} ▾" if tokens < minimum else str(tokens) for tokens in line] for line in counts],
            texttemplate="%{text}" if max(map(len, counts)) <= 24 else None,
            hovertemplate="%{y}, expert %{x}<br>%{z} tokens<extra></extra>",
        )
    )
    figure.update_xaxes(title_text="routed expert", dtick=1 if max(map(len, counts)) <= 24 else 5, showgrid=False)
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(
        height=rows_height(len(layers), per_row=30), coloraxis={"cmin": 0, "cmax": max(1, *map(max, counts)), "showscale": False}
    )
    below, total = sum(tokens < minimum for line in counts for tokens in line), sum(map(len, counts))
    caption = (
        "Tokens the router itself sent to each expert during calibration; "
        f"{below} of {total} experts lie below the minimum of {minimum} tokens (▾)."
    )
    return Plot(slug, f"Expert coverage{recipes}", caption, figure)
