"""Puts the report together: content and plots into one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.artifacts import write_text
from ...core.errors import ArtifactError
from ...validation.gates import Gate
from . import content
from .distributions import coverage_plots, distribution_plots
from .plot import Plot
from .rounding import score_error_plots, snr_plots
from .run import RecipeRun
from .shell import page
from .theme import colors
from .validation_plots import gate_plot, layer_error_plot, operator_plot, size_plot


def write_report(
    runs: Sequence[RecipeRun], path: Path, *, title: str, context: Mapping[str, Any], extra_gates: Sequence[Gate] = ()
) -> None:
    """Write the report of some recipes.

    Args:
        runs: At least one recipe; they appear in this order, names must differ.
        path: HTML file; it appears whole or not at all.
        title: Heading of the page.
        context: Facts to show beside the verdict, such as the model's configuration or the number of requests.
            Text, numbers, lists and mappings of them.
        extra_gates: Gates on the run as a whole, such as those on the demo's model. Default: none.

    Raises:
        ArtifactError: No run, two runs of one name, or the disk is full.
    """
    names = [run.name for run in runs]
    if not runs or len(set(names)) < len(names):
        problem = f"two recipes are named alike: {', '.join(sorted(names))}" if runs else "there is no recipe to report on"
        raise ArtifactError(problem, where=str(path), hint="give the report one folder per recipe, each of its own name")
    write_text(path, render(runs, title=title, context=context, extra_gates=extra_gates))


def render(runs: Sequence[RecipeRun], *, title: str, context: Mapping[str, Any], extra_gates: Sequence[Gate] = ()) -> str:
    """The page as text."""
    chapters, groups = _plots(runs), content.gate_groups(runs, extra_gates)
    values = {
        "runs": runs,
        "colors": colors(runs),
        "verdict": content.verdict(runs, groups),
        "groups": groups,
        "facts": content.facts(context),
        "comparison": content.comparison(runs),
        "remarks": content.remarks(runs),
        "tools": content.tools_of(runs),
        "chapters": chapters,
        "lineage_of": content.lineage_of,
    }
    return page("report.html", title, [plot for chapter in chapters.values() for plot in chapter], values)


def _plots(runs: Sequence[RecipeRun]) -> dict[str, list[Plot]]:
    return {
        "thresholds": gate_plot(runs),
        "operators": [*operator_plot(runs), *layer_error_plot(runs)],
        "weights": distribution_plots(runs, "weights"),
        "activations": distribution_plots(runs, "activations"),
        "quantization": [*score_error_plots(runs), *snr_plots(runs)],
        "experts": coverage_plots(runs),
        "sizes": size_plot(runs),
    }
