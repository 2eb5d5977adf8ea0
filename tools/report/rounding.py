"""Plots of what rounding does to each tensor: to the scores of items, and to the tensor itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from .layers import LayerRow, Part, rows_of
from .plot import Plot, log_axis, rows_axis, rows_height
from .run import RecipeRun
from .theme import label, markers


def score_error_plots(runs: Sequence[RecipeRun]) -> list[Plot]:
    """How far the rounding of each linear and embedding alone moves an item's score, all recipes in one figure."""
    rows = {run.name: [row for row in rows_of(run, "weights")[1] if row.score_error] for run in runs}
    names = list(dict.fromkeys(row.label for of_run in rows.values() for row in of_run))
    if not names:
        return []
    figure, marker = go.Figure(), markers(runs)
    for name, of_run in rows.items():
        figure.add_trace(_tensors(name, of_run, [row.score_error for row in of_run], "%{x:.3g} nat", marker=marker[name]))
    figure.update_xaxes(log_axis("predicted error of a score, nat", [row.score_error or 0.0 for of_run in rows.values() for row in of_run]))
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=[label(name) for name in names])
    figure.update_layout(height=rows_height(len(names)))
    caption = (
        "Root mean square over calibration requests of what the rounding of this tensor alone does to the score of an item: FP8 with that "
        "of its input, or FP16. A prediction to first order; the experts of a block are one row, whose squares add up. The tensors "
        "farthest to the right are worth a finer precision, whatever their signal-to-noise ratio."
    )
    return [Plot("score-error", "Predicted error of scores per layer", caption, figure)]


def _tensors(name: str, rows: Sequence[LayerRow], values: Sequence[float | None], shown: str, **more: Any) -> go.Scatter:
    """A recipe's tensors as markers, each in its own row of the plot; `shown` is how a marker's text writes the value."""
    text = f"%{{y}}<br>{shown}<extra>%{{fullData.name}}</extra>"
    places = [label(row.label) for row in rows]
    return go.Scatter(x=values, y=places, mode="markers", orientation="h", name=label(name), hovertemplate=text, **more)


def snr_plots(runs: Sequence[RecipeRun]) -> list[Plot]:
    """Signal-to-noise ratio of what is quantized, weights and activations side by side, all recipes in one figure."""
    parts: tuple[Part, Part] = ("weights", "activations")
    found = {part: {run.name: [row for row in rows_of(run, part)[1] if row.snr_db is not None] for run in runs} for part in parts}
    longest = max(len(rows) for by_run in found.values() for rows in by_run.values())
    if not longest:
        return []
    figure = make_subplots(1, 2, subplot_titles=[f"{part} in FP8" for part in parts], horizontal_spacing=0.16)
    marker = markers(runs)
    for column, part in enumerate(parts, 1):
        for name, rows in found[part].items():
            once = {"legendgroup": label(name), "showlegend": column == 1 and bool(rows)}
            trace = _tensors(name, rows, [row.snr_db for row in rows], "%{x:.1f} dB", marker=marker[name], **once)
            figure.add_trace(trace, row=1, col=column)
    ratios = [row.snr_db for by_run in found.values() for rows in by_run.values() for row in rows if row.snr_db is not None]
    figure.update_xaxes(title_text="signal-to-noise ratio, dB", range=(min(ratios) - 1, max(ratios) + 1))
    for column, part in enumerate(parts, 1):
        figure.update_yaxes(rows_axis(max(len(rows) for rows in found[part].values())), row=1, col=column)
    figure.update_layout(height=rows_height(longest), legend={"y": 1.0, "yanchor": "top", "yref": "container"}, margin={"t": 80})
    # Rounding to 3 mantissa bits: noise step^2 / 12 with a step of 1/8, signal 7/3 on average over a binade: 7/3 * 12 * 64 = 32.5 dB.
    caption = (
        "Quantized against exact values, experts by the worst of their block. E4M3's three mantissa bits give evenly spread values "
        "about 32 dB; beyond that, a few large values carry the signal."
    )
    return [Plot("snr", "Quantization signal-to-noise ratio per layer", caption, figure)]
