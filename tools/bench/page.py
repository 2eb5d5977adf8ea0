"""The result of a benchmark as one HTML page: the table, the latencies, and where the time of each plan goes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..clock import in_words
from ..report.measurement import Measured, write_measurement
from ..report.plot import Plot, rows_axis, rows_height
from ..report.theme import LIMIT_COLOR, color, label
from .parts import ELSEWHERE, PARTS, milliseconds_by_part
from .result import Result
from .table import HEADINGS, WORDS, candidate_rows, case_text, limits_of_another, results_with_limits

_FACTS = ("gpu", "driver", "cuda", "tensorrt", "torch", "triton", "onerec-trt", "commit", "weights")


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the page of a benchmark's result; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    environment = report["environment"]
    problems = environment["invalid_because"]
    measured = Measured(
        title="onerec-trt bench",
        machine=f"{environment['gpu']}, TensorRT {environment['tensorrt']}",
        good=not problems,
        headline="This run does not count" if problems else "This run counts",
        remarks=[*problems, *limits_of_another(environment), environment["timing"], *_clocks(environment)],
        headings=HEADINGS,
        words=WORDS,
        rows=candidate_rows(report),
        figures=[*_latency_plots(report), *_part_plots(environment["layer_times"])],
        facts=[(name, environment[name]) for name in _FACTS if name in environment],
    )
    write_measurement(measured, path)


def _clocks(environment: dict[str, Any]) -> Iterable[str]:
    """What the GPU's clock did while each model and batch shape was sampled."""
    for clock in environment["clocks"]:
        yield f"clock at {case_text(clock)}: {in_words(clock)}"


def _latency_plots(report: dict[str, Any]) -> Iterable[Plot]:
    """One plot for each model and batch shape."""
    results = [result for result, _ in results_with_limits(report)]
    for number, shape in enumerate(dict.fromkeys(map(case_text, results))):
        yield _latency_plot([result for result in results if case_text(result) == shape], shape, number)


def _latency_plot(results: Sequence[Result], shape: str, number: int) -> Plot:
    names = [label(f"{result.engine} {result.recipe}") for result in results]
    medians = [result.latency_ms.median for result in results]
    figure = go.Figure()
    figure.add_bar(
        x=medians,
        y=names,
        orientation="h",
        name="median, p10 to p90",
        marker={"color": [color(1) if result.engine == "tensorrt" else color(0) for result in results]},
        text=[f"{median:.1f}" for median in medians],
        textposition="inside",
        insidetextanchor="start",
        error_x={
            "type": "data",
            "symmetric": False,
            "array": [result.latency_ms.p90 - result.latency_ms.median for result in results],
            "arrayminus": [result.latency_ms.median - result.latency_ms.p10 for result in results],
        },
        hovertemplate="%{y}: %{x:.2f} ms<extra></extra>",
    )
    figure.add_scatter(
        x=[result.limit_ms for result in results],
        y=names,
        mode="markers",
        name="physical limit of its number format",
        marker={"symbol": "line-ns", "size": 22, "line": {"width": 3, "color": LIMIT_COLOR}},
        hovertemplate="limit: %{x:.1f} ms<extra></extra>",
    )
    figure.update_xaxes(title_text="ms per batch", rangemode="tozero")
    figure.update_yaxes(rows_axis(len(results)), categoryorder="array", categoryarray=names)
    figure.update_layout(height=rows_height(len(results), per_row=40), bargap=0.35)
    caption = "From inputs on the GPU to items on the GPU. Grey: PyTorch. Blue: TensorRT. The red line is as fast as the GPU could be."
    return Plot(f"latency-{number}", f"Latency of {shape}", caption, figure)


def _part_plots(layer_times: Sequence[dict[str, Any]]) -> Iterable[Plot]:
    """Where the time of each plan goes, one bar per plan."""
    if not layer_times:
        return
    names = [label(f"{times['recipe']}, {case_text(times)}") for times in layer_times]
    by_part = list(map(milliseconds_by_part, layer_times))
    figure = go.Figure()
    for place, part in enumerate(part for part in PARTS if any(milliseconds[part] for milliseconds in by_part)):
        figure.add_bar(
            x=[milliseconds[part] for milliseconds in by_part],
            y=names,
            orientation="h",
            name=part,
            marker={"color": LIMIT_COLOR if part == ELSEWHERE else color(place)},
            hovertemplate=f"{part}: %{{x:.2f}} ms<extra>%{{y}}</extra>",
        )
    figure.update_xaxes(title_text="ms, layers timed one by one")
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=names)
    figure.update_layout(height=rows_height(len(names), per_row=44), barmode="stack", bargap=0.35, legend_traceorder="normal")
    caption = (
        "A layer that computes several places of the model counts for one part. "
        "Layers were timed one by one: their sum need not be the latency."
    )
    yield Plot("parts", "Where the time goes", caption, figure)
