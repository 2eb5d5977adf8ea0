"""What the command `bench` does: it reads the options, measures and prints a table. A run that does not count exits with 2."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import typer

from ...core.errors import GateError, RecipeError
from ...core.precision import PRECISIONS
from ...models.config import SIZES, OneRecConfig
from ..outputs import require_own_json, require_own_page
from ..terminal import print_results
from . import run as benchmark
from .candidates import TORCH_ENGINES
from .case import parse_case
from .page import write_page
from .plans import RECIPES, precision_of
from .table import terminal_tables

Word = TypeVar("Word", bound=str)
DEFAULT_RECIPES = ("fp16", "fp8-static", "fp8-row")


def bench(
    out: Path,
    sizes: Sequence[str],
    cases: Sequence[str],
    recipes: Sequence[str],
    baselines: Sequence[str],
    samples: int,
    layers: int,
    work: Path,
    commit: str,
    plans_only: bool,
    as_json: bool,
) -> None:
    models = dict(model_of(size, layers) for size in sizes)
    options = benchmark.BenchOptions(
        models=models,
        cases=tuple(map(parse_case, cases)),
        recipes=tuple(_recipes(recipes, models)),
        engines=tuple(_known(baselines, TORCH_ENGINES, "--baseline")),
        samples=samples,
        folder=work,
        commit=commit,
    )
    require_own_json(out, ("environment", "results"))
    require_own_page(out.with_suffix(".html"))
    if plans_only:
        benchmark.prepare(options)
        return
    report = benchmark.bench(options, out)
    write_page(report, page := out.with_suffix(".html"))
    if as_json:
        typer.echo(json.dumps(report, indent=2, sort_keys=True, allow_nan=False))
    else:
        print_results(terminal_tables(report))
        typer.echo(f"with plots: {page}")
    if problems := report["environment"]["invalid_because"]:
        raise GateError("this run does not count:\n    " + "\n    ".join(problems), where=str(out), hint="is anything else using the GPU?")


def model_of(size: str, layers: int) -> tuple[str, OneRecConfig]:
    """Name and configuration of a published size, cut to so many layers; 0: all.

    Raises:
        RecipeError: There is no such size, or it has fewer layers.
    """
    if size not in SIZES:
        raise RecipeError(f"there is no size {size!r}", where="--size", hint=f"choose among {', '.join(SIZES)}")
    config = SIZES[size]
    if not layers:
        return size, config
    if layers > config.n_layers:
        raise RecipeError(f"{size} has {config.n_layers} layers, not {layers}", where="--layers")
    return f"{size}-{layers}layers", config.with_changes(n_layers=layers)


def _recipes(given: Sequence[str], models: Mapping[str, OneRecConfig]) -> list[str]:
    """Those given, or the default ones. Refuses fp8-static for experts before hours of work: random weights give no scales for it."""
    impossible = [name for name, config in models.items() if config.moe is not None]
    recipes = _known(given or DEFAULT_RECIPES, RECIPES, "--recipe")
    static = [recipe for recipe in recipes if impossible and PRECISIONS[precision_of(recipe)].needs_activation_amax]
    if static and given:
        what = f"{' and '.join(static)} of {' and '.join(impossible)}: static scales of experts cannot be made from random weights"
        raise RecipeError(what, where="--recipe", hint="measure fp8-row, or sizes without experts")
    return [recipe for recipe in recipes if recipe not in static]


def _known(words: Sequence[str], known: Sequence[Word], where: str) -> list[Word]:
    """The words as those of a known list, each once."""
    by_word: dict[str, Word] = {word: word for word in known}
    for word in words:
        if word not in by_word:
            raise RecipeError(f"there is no {word!r}", where=where, hint=f"choose among {', '.join(known)}")
    return [by_word[word] for word in dict.fromkeys(words)]
