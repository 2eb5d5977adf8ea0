"""Tables and lines for the terminal; the command line prints them. rich drops colors where NO_COLOR asks for it.

Every table fits into 80 columns without cutting a cell: text folds, numbers and names of recipes do not, long text has a line of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table
from rich.text import Text

from ..core.records import Record
from ..validation.gates import Gate
from ..validation.validate import Validation
from .formats import number_text, seconds_text, share_text, sign_text
from .terminal import compact_table

_WARNINGS = 12  # of a stage in the terminal


def gates_table(gates: Sequence[Gate], *, failed_only: bool = False) -> Table | Text:
    """Gates, failed ones first; the mark says what the color says, for terminals without color. One line where nothing is to be shown."""
    title = f"{sum(gate.passed for gate in gates)} of {len(gates)} gates passed"
    if gates and failed_only and all(gate.passed for gate in gates):
        return _mark(True).append(f" {title}", style="not green")
    table = compact_table(title)
    table.add_column("", no_wrap=True)
    table.add_column("recipe", overflow="fold")
    table.add_column("gate", overflow="fold")
    for heading in ("value", "threshold"):
        table.add_column(heading, justify="right", no_wrap=True)
    for gate in failed_first(gates):
        if failed_only and gate.passed:
            continue
        threshold = f"{sign_text(gate.comparison)} {number_text(gate.threshold)}"
        cells = (escape(gate.recipe), _with_detail(gate.name, gate.detail), number_text(gate.value), threshold)
        table.add_row(_mark(gate.passed), *cells, style=None if gate.passed else "red")
    return table


def recipes_table(results: Sequence[Validation]) -> Table:
    """What decides between recipes, one row each."""
    table = compact_table("Recipes")
    table.add_column("", no_wrap=True)
    table.add_column("recipe", overflow="fold")
    at = "/".join(str(k) for k in sorted({result.beams.k for result in results}))
    for heading in (f"hit@{at}", "FP32", f"overlap@{at}", "top-1", "error\nnat", "ratio", "gates"):
        table.add_column(heading, justify="right", no_wrap=True)
    for result in results:
        beams, scoring = result.beams, result.scoring
        shares = (share_text(part) for part in (beams.hit, beams.hit_fp32, beams.overlap, beams.top1))
        gates = f"{sum(gate.passed for gate in result.gates)}/{len(result.gates)}"
        mark = _mark(result.passed and bool(result.gates))
        table.add_row(mark, escape(result.recipe), *shares, number_text(scoring.engine, ".3g"), number_text(scoring.ratio, ".3f"), gates)
    return table


def plans_table(plans: Sequence[Mapping[str, Any]]) -> Table:
    """Built plans, as in the `plans` part of summary.json: path, target, and whether they were seen running."""
    table = compact_table("Plans")
    table.add_column("plan and its target", overflow="fold")
    table.add_column("validated", no_wrap=True)
    for plan in plans:
        seen = bool(plan["validated"])
        detail = str(plan["target"]) if seen else f"{plan['target']}, not seen on a GPU"
        table.add_row(_with_detail(str(plan["path"]), detail), Text("yes", style="green") if seen else Text("no", style="yellow"))
    return table


def stage_line(recipe: str, stage: str, ran: bool, seconds: float) -> Text:
    """One line about a finished stage: `✓ fp8-row       calibrate         12.3 s`, or that it was up to date."""
    line = Text("✓ ", style="green").append(f"{recipe:13} ", style="bold").append(f"{stage:10} ", style="not green not bold")
    if ran:
        return line.append(seconds_text(seconds).rjust(12), style="not green")
    return line.append("up to date".rjust(12), style="not green dim")


def stage_warnings(record: Record) -> list[Text]:
    """What a stage warns of, the builder's warnings about each plan included: a few lines, the rest is in the record."""
    plans = [plan for plan in record.facts.values() if isinstance(plan, Mapping) and "builder_warnings" in plan]
    built = [f"{plan['plan']}: {warning}" for plan in plans for warning in plan["builder_warnings"]]
    warnings = [*record.facts.get("warnings", ()), *built]
    more = [f"{len(warnings) - _WARNINGS} more warnings are in the record and in the report"] if len(warnings) > _WARNINGS else []
    return [Text("! ", style="yellow").append(str(warning), style="not yellow") for warning in [*warnings[:_WARNINGS], *more]]


def failed_first(gates: Sequence[Gate]) -> list[Gate]:
    """Failed gates first, otherwise as they come."""
    return sorted(gates, key=lambda gate: gate.passed)


def _with_detail(name: str, detail: str) -> Text:
    """A name, and below it what is to be said about it."""
    return Text(name).append(f"\n{detail}" if detail else "", style="dim")


def _mark(passed: bool) -> Text:
    return Text("✓", style="green") if passed else Text("✗", style="bold red")
