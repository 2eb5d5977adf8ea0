"""The result of `dev bench-operators` as one HTML page: the table, and each kernel beside its library."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from ..clock import in_words
from ..report.measurement import Measured, write_measurement
from ..report.plot import Plot, rows_axis, rows_height
from ..report.theme import color, label

_HEADINGS = ("operator", "shape", "variant", "beside it", "us", "TFLOP/s", "GB/s", "beside it, us", "x as fast", "clock")
_WORDS = 4
_FACTS = ("gpu", "driver", "cuda", "torch", "triton", "onerec-trt", "commit", "samples")


def write_page(report: dict[str, Any], path: Path) -> None:
    """Write the page; it appears whole or not at all.

    Raises:
        ArtifactError: The disk is full.
    """
    environment, results = report["environment"], report["results"]
    failures = environment.get("failures", ())  # results of earlier revisions have none
    largest = max((each["difference"] for each in environment["differences"]), default=0.0)
    measured = Measured(
        title="onerec-trt dev bench-operators",
        machine=f"{environment['gpu']}, compute capability {environment['compute_capability']}",
        good=not failures,
        headline="Kernels are missing" if failures else "Every kernel was compared with PyTorch before it was timed",
        remarks=[
            *(f"{each['operator']} {each['shape']}, {each['variant']}: {each['problem']}" for each in failures),
            f"Largest difference: {largest:.2g}, by the metric of docs/numerics.md.",
            f"{environment['timing']}.",
        ],
        headings=_HEADINGS,
        words=_WORDS,
        rows=[row for result, clock in zip(results, environment["clocks"], strict=True) for row in _rows(result, clock)],
        figures=[_plot(results)],
        facts=[(name, environment[name]) for name in _FACTS if name in environment],
    )
    write_measurement(measured, path)


def _rows(result: dict[str, Any], clock: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    """The kernel, and below it what each part of its launches takes at sustained clocks."""
    yield _row(result, clock)
    for part in result.get("parts", ()):  # results of earlier revisions have none
        sustained = part["sustained"]
        rate = f"{sustained['tflops']:.0f}" if sustained["tflops"] else ""
        yield (result["operator"], result["shape"], part["name"], "", f"{sustained['microseconds']:.1f}", rate, "", "", "", "")


def _row(result: dict[str, Any], clock: dict[str, Any]) -> tuple[str, ...]:
    library = result["library_microseconds"]
    return (
        *(result["operator"], result["shape"], result["variant"], result["library"]),
        f"{result['microseconds']:.1f}",
        f"{result['tflops']:.0f}" if result["tflops"] else "",
        f"{result['gbytes_per_s']:.0f}",
        f"{library:.1f}" if library else "",
        f"{library / result['microseconds']:.2f}" if library else "",
        in_words(clock),
    )


def _plot(results: list[dict[str, Any]]) -> Plot:
    names = [label(f"{result['operator']} {result['shape']}, {result['variant']}") for result in results]
    figure = go.Figure()
    for place, (name, key) in enumerate((("beside it", "library_microseconds"), ("kernel", "microseconds"))):
        figure.add_bar(
            x=[result[key] for result in results],
            y=names,
            orientation="h",
            name=name,
            marker={"color": color(place)},
            customdata=[label(result["library"]) if place == 0 else "" for result in results],
            hovertemplate="%{x:.1f} us %{customdata}<extra>%{y}</extra>",
        )
    figure.update_xaxes(title_text="us per call", rangemode="tozero")
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=names)
    figure.update_layout(height=rows_height(len(names), per_row=40), barmode="group", bargap=0.3)
    return Plot("operators", "Kernels beside libraries", "Shorter is faster. The table says what stands beside each kernel.", figure)
