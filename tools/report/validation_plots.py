"""Plots of what validation found: gates, operators against their thresholds, error per layer; and sizes."""

from __future__ import annotations

import re
from collections.abc import Sequence

import plotly.graph_objects as go

from ...validation.gates import Gate
from ...validation.operator_parity import OperatorResult
from ..formats import bytes_text
from .plot import Plot, floor_of, log_axis, rows_axis, rows_height
from .run import RecipeRun
from .theme import LIMIT_COLOR, colors, label, symbols

_MIB = 1 << 20
_FARTHEST = 2.0  # shares of a threshold above this one are drawn here
_ROUNDING = 1e-16  # differences below it are what FP64 leaves of equal values
_BLOCK = re.compile(r"(?:^|\.)blocks\.(\d+)(?:\.|$)")


def gate_plot(runs: Sequence[RecipeRun]) -> list[Plot]:
    """How much of each gate's threshold is used up, per recipe."""
    found = dict.fromkeys(gate.name for run in runs for gate in run.gates if _used(gate) is not None)
    names = sorted(found, key=lambda name: name.startswith("operator "))  # recipes use different operators: keep those together
    if not names:
        return []
    figure, color, symbol = go.Figure(), colors(runs), symbols(runs)
    for run in runs:
        shown = [(gate, used) for gate in run.gates if (used := _used(gate)) is not None]
        figure.add_scatter(
            x=[min(used, _FARTHEST) for _, used in shown],
            y=[label(gate.name) for gate, _ in shown],
            customdata=[label(f"{gate.sentence()}: {'passed' if gate.passed else 'FAILED'}") for gate, _ in shown],
            mode="markers",
            orientation="h",
            name=label(run.name),
            marker={
                "color": [color[run.name] if gate.passed else LIMIT_COLOR for gate, _ in shown],
                "symbol": [symbol[run.name] if gate.passed else "x" for gate, _ in shown],
                "size": 7,
            },
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.add_vline(1, line={"color": LIMIT_COLOR, "width": 1.5}, annotation_text="limit", annotation_position="top")
    figure.update_xaxes(title_text="share of the threshold used", tickformat=".0%", range=(-0.03, _reach(runs)))
    figure.update_yaxes(rows_axis(len(names)), categoryorder="array", categoryarray=[label(name) for name in names])
    figure.update_layout(height=rows_height(len(names), per_row=30))
    caption = (
        "Value / threshold where the value must stay below, threshold / value where it must stay above; "
        f"a failed gate is a red cross right of the limit, at {_FARTHEST:.0%} if it lies farther out. "
        "Gates against zero and values that are not finite stand in the table only."
    )
    return [Plot("gates-plot", "Gates against their thresholds", caption, figure)]


def operator_plot(runs: Sequence[RecipeRun]) -> list[Plot]:
    """Difference of every operator node from its torch reference, with each operator's threshold."""
    results = {run.name: [r for r in run.validation.operators if r.difference is not None] for run in runs}
    thresholds = {r.operator: r.threshold for run in runs for r in run.validation.operators}
    if not thresholds:
        return []
    figure, color, symbol = go.Figure(), colors(runs), symbols(runs)
    floor = max(_ROUNDING, floor_of(r.difference for found in results.values() for r in found))
    for name, found in results.items():
        figure.add_scatter(
            x=[max(r.difference or 0.0, floor) for r in found],
            y=[label(r.operator) for r in found],
            customdata=[label(f"{r.label}: {r.difference:.3g}, threshold {r.threshold:.3g}") for r in found],
            mode="markers",
            orientation="h",
            name=label(name),
            marker={"color": color[name], "symbol": symbol[name], "size": 6, "opacity": 0.8},
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.add_scatter(
        x=[max(threshold, floor) for threshold in thresholds.values()],
        y=[label(operator) for operator in thresholds],
        customdata=list(thresholds.values()),
        mode="markers",
        name="threshold",
        marker={"symbol": "line-ns", "size": 16, "line": {"width": 2, "color": LIMIT_COLOR}},
        hovertemplate="%{y}: threshold %{customdata:.3g}<extra></extra>",
    )
    seen = [max(r.difference or 0.0, floor) for found in results.values() for r in found]
    figure.update_xaxes(log_axis("difference from the torch reference, relative", [*seen, *thresholds.values()]))
    figure.update_yaxes(rows_axis(len(thresholds)))
    figure.update_layout(height=rows_height(len(thresholds), per_row=34))
    caption = (
        "Each mark is one operator node of the exported file, fed with the packed model's own inputs. "
        f"Marks at {floor:.0e} stand for no difference, or less."
    )
    caption += _not_finite(runs)
    return [Plot("operators", "Operators against their thresholds", caption, figure)]


def layer_error_plot(runs: Sequence[RecipeRun]) -> list[Plot]:
    """The worst operator of every layer, as a share of its threshold, per recipe."""
    worst = {run.name: _worst_by_layer(run.validation.operators) for run in runs}
    if not any(worst.values()):
        return []
    figure, color, symbol = go.Figure(), colors(runs), symbols(runs)
    floor = floor_of(used for layers in worst.values() for used, _ in layers.values())
    order = sorted({place for layers in worst.values() for place in layers})
    for name, layers in worst.items():
        places = [place for place in order if place in layers]
        figure.add_scatter(
            x=[place[2] for place in places],
            y=[max(layers[place][0], floor) for place in places],
            customdata=[label(f"{layers[place][1]}: {layers[place][0]:.3g} of its threshold") for place in places],
            mode="lines+markers",
            name=label(name),
            line={"color": color[name], "width": 1.5},
            marker={"symbol": symbol[name], "size": 8},
            hovertemplate="%{customdata}<extra>%{fullData.name}</extra>",
        )
    figure.add_hline(1, line={"color": LIMIT_COLOR, "width": 1.5})
    seen = [max(used, floor) for layers in worst.values() for used, _ in layers.values()]
    figure.update_yaxes(log_axis("share of the threshold used", [*seen, 1.0]))
    figure.update_xaxes(categoryorder="array", categoryarray=[place[2] for place in order])
    figure.update_layout(height=340, scattermode="overlay")
    caption = (
        "The worst operator of each layer over the three decode steps; the red line is the threshold. "
        "A step up from one layer to the next says where to look first."
    )
    caption += _not_finite(runs)
    return [Plot("layers", "Error per layer", caption, figure)]


def size_plot(runs: Sequence[RecipeRun]) -> list[Plot]:
    """Bytes of weights and plans per recipe, beside what the weights would take in FP16."""
    figure, color = go.Figure(), colors(runs)
    for run in runs:
        sizes = sizes_of(run)
        figure.add_bar(
            x=[size / _MIB for size in sizes.values()],
            y=[label(name) for name in sizes],
            orientation="h",
            name=label(run.name),
            marker={"color": color[run.name], "cornerradius": 3},
            customdata=[bytes_text(size) for size in sizes.values()],
            hovertemplate="%{y}: %{customdata}<extra>%{fullData.name}</extra>",
        )
    groups = len({name for run in runs for name in sizes_of(run)})
    figure.update_xaxes(title_text="MiB", rangemode="tozero")
    figure.update_yaxes(autorange="reversed", showgrid=False)
    figure.update_layout(height=rows_height(groups * len(runs), per_row=20), barmode="group", bargap=0.25)
    caption = (
        "Weights of the serving graph as exported, and the same with FP16 in place of FP8. "
        "A plan holds kernels too, which outweigh the weights of a small model."
    )
    return [Plot("sizes", "Sizes of weights and plans", caption, figure)]


def sizes_of(run: RecipeRun) -> dict[str, int]:
    """Bytes by what they are: weights as FP16 would hold them, weights as exported, each plan."""
    graph = next(iter(run.plans.values())).weight_bytes.graph
    weights = {"weights, with FP16 in place of FP8": graph["with_fp16_instead"], "weights, as exported": graph["fp8"] + graph["other"]}
    return weights | {f"plan for compute capability {plan.compute_capability}": plan.bytes for plan in run.plans.values()}


def _used(gate: Gate) -> float | None:
    """Share of the threshold used up, above 1 where the gate fails; None where no ratio can say it."""
    if gate.value is None or gate.threshold <= 0 or (gate.comparison == ">=" and gate.value <= 0):
        return None
    return gate.value / gate.threshold if gate.comparison == "<=" else gate.threshold / gate.value


def _reach(runs: Sequence[RecipeRun]) -> float:
    """Right end of the axis: a little beyond the limit, or beyond the farthest failed gate."""
    farthest = max(min(used, _FARTHEST) for run in runs for gate in run.gates if (used := _used(gate)) is not None)
    return max(1.1, farthest + 0.05)


def _not_finite(runs: Sequence[RecipeRun]) -> str:
    """What a logarithmic axis cannot show, in words."""
    places = [f"{run.name} {r.label}" for run in runs for r in run.validation.operators if r.difference is None]
    return f" Not shown, because the difference is not finite: {', '.join(places)}." if places else ""


_Place = tuple[int, int, str]


def _worst_by_layer(results: Sequence[OperatorResult]) -> dict[_Place, tuple[float, str]]:
    worst: dict[_Place, tuple[float, str]] = {}
    for result in results:
        if result.difference is None or result.threshold <= 0:
            continue
        place, used = _place(result.label), result.difference / result.threshold
        if place not in worst or used > worst[place][0]:
            worst[place] = (used, result.label)
    return worst


def _place(operator_label: str) -> _Place:
    """Where an operator stands, in the order of the model: context, blocks, heads and beam step."""
    if match := _BLOCK.search(operator_label):
        return (1, int(match[1]), f"block {match[1]}")
    return (0, 0, "context") if operator_label.startswith("context") else (2, 0, "head and beam")
