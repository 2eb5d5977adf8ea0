"""What the command `bench` does: its words become options, its result a table; a run that does not count exits with 2."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ...builders.machine import this_machine
from ...core.errors import GateError, RecipeError
from ...models.config import SIZES, OneRecConfig
from . import run as benchmark
from .case import parse_case
from .contenders import TORCH_ENGINES
from .plans import RECIPES

Word = TypeVar("Word", bound=str)


def bench(
    out: Path,
    sizes: Sequence[str],
    cases: Sequence[str],
    recipes: Sequence[str],
    opponents: Sequence[str],
    samples: int,
    layers: int,
    work: Path,
    commit: str,
    plans_only: bool,
    as_json: bool,
) -> None:
    options = benchmark.BenchOptions(
        models=dict(_model(size, layers) for size in sizes),
        cases=tuple(map(parse_case, cases)),
        recipes=tuple(_known(recipes, RECIPES, "--recipe")),
        engines=tuple(_known(opponents, TORCH_ENGINES, "--opponent")),
        samples=samples,
        folder=work,
        commit=commit,
    )
    if plans_only:
        benchmark.prepare(options, this_machine("tensorrt"))
        return
    report = benchmark.bench(options, out)
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True, allow_nan=False))
    else:
        Console().print(table(report))
    if problems := report["environment"]["invalid_because"]:
        raise GateError("this run does not count:\n    " + "\n    ".join(problems), where=str(out), hint="is anything else using the GPU?")


def table(report: dict[str, Any]) -> Table:
    """Latency, throughput and distance from the limits, one row per contender."""
    shown = Table(title=escape(f"{report['environment']['gpu']}, TensorRT {report['environment']['tensorrt']}"), title_justify="left")
    for heading in ("model", "batch x beam x context", "engine", "recipe"):
        shown.add_column(heading)
    for heading in ("median, ms", "p10 to p90", "requests/s", "x limit", "x limit, FP8 linears only"):
        shown.add_column(heading, justify="right")
    for result, limits in benchmark.rows(report):
        latency, partly = result.latency_ms, limits["fp8, attention and heads in 16-bit"]
        beam = result.beam if isinstance(result.beam, int) else "-".join(map(str, result.beam))
        quantised = result.recipe.startswith("fp8")
        shown.add_row(
            escape(result.model),
            f"{result.batch} x {beam} x {result.context}",
            result.engine,
            result.recipe,
            f"{latency.median:.1f}",
            f"{latency.p10:.1f} to {latency.p90:.1f}",
            f"{result.requests_per_s:.0f}",
            f"{latency.median / result.limit_ms:.2f}",
            f"{latency.median / partly:.2f}" if quantised else "",
        )
    return shown


def _model(size: str, layers: int) -> tuple[str, OneRecConfig]:
    if size not in SIZES:
        raise RecipeError(f"there is no size {size!r}", where="--size", hint=f"choose among {', '.join(SIZES)}")
    config = SIZES[size]
    if not layers:
        return size, config
    if layers > config.n_layers:
        raise RecipeError(f"{size} has {config.n_layers} layers, not {layers}", where="--layers")
    return f"{size}-{layers}layers", config.with_changes(n_layers=layers)


def _known(words: Sequence[str], known: Sequence[Word], where: str) -> list[Word]:
    """The words as those of a known list, each once."""
    by_word: dict[str, Word] = {word: word for word in known}
    for word in words:
        if word not in by_word:
            raise RecipeError(f"there is no {word!r}", where=where, hint=f"choose among {', '.join(known)}")
    return [by_word[word] for word in dict.fromkeys(words)]
