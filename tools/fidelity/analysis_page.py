"""An analysis as one HTML page: averages side by side, plots by layer and kind, and behind them a verdict for every tensor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ...fidelity.analysis import Analysis
from ...fidelity.distributions import PARTS, Average, Distributions, Part, TensorDistribution, averaged, by_kind, by_layer
from ...fidelity.verdicts import SAFE_DB, Verdict
from ...models.layout import label_of
from ..report.measurement import LongTable, Measured, write_measurement
from ..report.plot import Plot, floor_of, log_axis, rows_axis, rows_height
from ..report.theme import LIMIT_COLOR, color, label
from .analysis_tables import average_rows

_STATISTICS = ("variance", "absmax", "absp99")
_NAMES = {"variance": "variance", "absmax": "AbsMax", "absp99": "AbsP99"}
_AVERAGES = ("model", "tensors", *_NAMES.values())
_TENSORS = ("tensor", "part", "kind", "verdict", "reason", *_NAMES.values())


def write_analysis(analysis: Analysis, path: Path) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    found, worst = analysis.checkpoint, analysis.checkpoint.worst
    lost = [load for load in found.experts if load.never]
    remarks = [
        f"Verdicts rest on {found.requests} requests. A scale is safe where the product keeps {SAFE_DB:g} dB; E4M3 gives 31 to 32.",
        f"The ranking model learned from the same requests; its AUC is {analysis.ranking_auc:.3f}, where 0.5 is chance.",
        *(f"{load.layer}: no token was sent to expert {', '.join(map(str, load.never))}." for load in lost),
    ]
    headline = "One scale per tensor is safe everywhere" if not worst else f"{len(worst)} tensors have outliers or need more than one scale"
    measured = Measured(
        title="onerec-trt analyze",
        machine=found.model,
        good=not any(t.judgement and t.judgement.verdict is Verdict.FP16 for t in worst),
        headline=headline,
        remarks=remarks,
        headings=_AVERAGES,
        words=2,
        rows=list(average_rows(analysis)),
        figures=[_side_by_side(analysis), *_by_layer(found), *_by_kind(found), *_verdict_plot(found)],
        facts=[("published figures", "figure 1 of arXiv 2603.11486")],
        details=LongTable("Every tensor, worst first", _TENSORS, 5, [_row(tensor) for tensor in sorted(found.tensors, key=_severity)]),
    )
    write_measurement(measured, path)


def _row(tensor: TensorDistribution) -> tuple[str, ...]:
    judged = ("never quantized", "") if tensor.judgement is None else (tensor.judgement.verdict.value, tensor.judgement.reason)
    numbers = (f"{getattr(tensor, statistic):.4g}" for statistic in _STATISTICS)
    return (tensor.name, tensor.part, tensor.kind, *judged, *numbers)


def _severity(tensor: TensorDistribution) -> float:
    """Tensors in danger first, those that FP8 never touches last."""
    return float("inf") if tensor.judgement is None else tensor.judgement.tensor_db


def _side_by_side(analysis: Analysis) -> Plot:
    """Averages of the checkpoint and of the ranking model, as bars on logarithmic axes."""
    figure = make_subplots(1, 2, subplot_titles=["weights", "activations"], horizontal_spacing=0.12)
    for place, found in enumerate((analysis.checkpoint, analysis.ranking)):
        for column, part in enumerate(PARTS, 1):
            mean = found.average(part)
            figure.add_bar(
                x=list(_NAMES.values()),
                y=[getattr(mean, statistic) for statistic in _STATISTICS],
                name=label(found.model),
                legendgroup=found.model,
                showlegend=column == 1,
                marker={"color": color(place + 1)},
                hovertemplate="%{x}: %{y:.3g}<extra>%{fullData.name}</extra>",
                row=1,
                col=column,
            )
    figure.update_yaxes({"type": "log", "exponentformat": "power"})
    figure.update_layout(height=340, margin={"t": 70}, legend={"y": 1.0, "yanchor": "top", "yref": "container"})
    return Plot("averages", "Averages beside a traditional ranking model", "Logarithmic.", figure)


def _by_layer(found: Distributions) -> Iterator[Plot]:
    """One row per tensor, in the model's order; experts of a block are one row."""
    for part in PARTS:
        rows = {label(label_of(name)): averaged(members) for name, members in by_layer(t for t in found.tensors if t.part == part).items()}
        title = f"{part.capitalize()}s by layer"
        yield Plot(f"layers-{part}", title, "Logarithmic. The experts of a block are one row, their mean.", _dots(rows))


def _by_kind(found: Distributions) -> Iterator[Plot]:
    """The mean of every kind of tensor."""
    for part in PARTS:
        rows = {label(kind): averaged(members) for kind, members in by_kind(found, part).items()}
        yield Plot(f"kinds-{part}", f"{part.capitalize()}s by kind", "Logarithmic; means over the tensors of a kind.", _dots(rows))


def _dots(rows: dict[str, Average]) -> go.Figure:
    figure = make_subplots(1, len(_STATISTICS), shared_yaxes=True, horizontal_spacing=0.03, subplot_titles=list(_NAMES.values()))
    for column, statistic in enumerate(_STATISTICS, 1):
        values = [float(getattr(mean, statistic)) for mean in rows.values()]
        floor = floor_of(values)
        figure.add_scatter(
            x=[max(value, floor) for value in values],
            y=list(rows),
            customdata=values,
            mode="markers",
            showlegend=False,
            marker={"size": 7, "color": color(1)},
            hovertemplate="%{y}: %{customdata:.4g}<extra></extra>",
            row=1,
            col=column,
        )
        figure.update_xaxes(log_axis("", values, ticks=5), row=1, col=column)
    figure.update_yaxes(rows_axis(len(rows)))
    figure.update_layout(height=rows_height(len(rows), per_row=16), margin={"t": 60})
    return figure


def _verdict_plot(found: Distributions) -> Iterator[Plot]:
    """Signal-to-noise ratio of the product by scale, worst tensor of each row."""
    for part in PARTS:
        judged = [t for t in found.tensors if t.part == part and t.judgement is not None]
        groups = by_layer(judged)
        if groups:
            yield _ratios(part, groups)


def _ratios(part: Part, groups: dict[str, list[TensorDistribution]]) -> Plot:
    figure, second = go.Figure(), "per token" if part == "activation" else "per channel"
    names = [label(label_of(name)) for name in groups]
    for place, (field, scale) in enumerate((("tensor_db", "one scale"), ("row_db", second), ("block_db", "blocks"))):
        figure.add_scatter(
            x=[_worst(members, field) for members in groups.values()],
            y=names,
            mode="markers",
            name=scale,
            marker={"size": 7, "color": color(place + 1), "symbol": ("circle", "diamond", "square")[place]},
            hovertemplate="%{y}: %{x:.1f} dB<extra>" + scale + "</extra>",
        )
    figure.add_vline(SAFE_DB, line={"color": LIMIT_COLOR, "width": 1, "dash": "dot"})
    figure.update_xaxes(title_text="signal-to-noise ratio of the product, dB")
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=names)
    figure.update_layout(height=rows_height(len(names), per_row=16))
    caption = f"The worst tensor of each row. Left of the red line at {SAFE_DB:g} dB a scale is not safe."
    return Plot(f"verdicts-{part}", f"What FP8 leaves of products, {part}s quantized", caption, figure)


def _worst(members: Sequence[TensorDistribution], field: str) -> float:
    return min(float(getattr(t.judgement, field)) for t in members if t.judgement is not None)
