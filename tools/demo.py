"""The demo: a synthetic world, a small model trained on it, and the real pipeline on that checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from ..core.artifacts import write_text
from ..core.errors import ArtifactError
from ..core.recipe import Recipe, load_recipe, parse_recipe
from ..core.sources import Sources
from ..core.stages import Stage, require_places
from ..models.checkpoint import write_checkpoint
from ..models.demo import DEMO_CONFIG, DEMO_SEED, DEMO_TRAINING, DEMO_USERS, DEMO_WORLD, make_demo_data, request_file, train_demo
from ..models.evaluation import hits, popularity_hits
from ..models.requests import read_requests
from ..validation.confidence_interval import paired_interval
from ..validation.fp32_reference import heldout_requests, make_reference
from ..validation.gates import Gate, gate
from .fidelity.command import require_own_fidelity
from .pipeline import StageResult, folders_of, reference_job_of, require_own_summary, run_stages, stages_of, timed

SOURCES = Sources(("core", "models"))  # of data and training
FIDELITY_FILE = "fidelity.json"
DEMO_RECIPES = ("fp16", "fp8-static", "fp8-row", "fp8-row-block", "fp8-paper")
HIT_RANGE = (0.2, 0.8)  # outside, hit rates say nothing: the task is too hard or too easy
TIMES_POPULARITY = 3.0


def prepare(out: Path) -> Iterator[StageResult]:
    """Make the data and train the model, unless they are there already.

    Raises:
        ArtifactError: `out` holds something of somebody else's where the demo writes, the disk is full, or `out` cannot be written.
    """
    stages = (data_stage(out / "data"), train_stage(out / "data", out / "checkpoint"))
    require_places(*stages, *(stage for name in DEMO_RECIPES for stage in stages_of(_recipe(out, name))))
    _require_own_files(out)
    for stage in stages:
        yield timed("demo", stage)


def recipes(out: Path, names: Sequence[str] = DEMO_RECIPES) -> list[Recipe]:
    """The demo's recipes, copied into `out`/recipes, where they can be run again one by one."""
    return [load_recipe(_copied(out, name)) for name in names]


def run(out: Path, chosen: Sequence[Recipe]) -> Iterator[StageResult]:
    """Every stage of every recipe."""
    for recipe in chosen:
        yield from run_stages(recipe)


def model_gates(recipe: Recipe) -> tuple[list[Gate], dict[str, Any]]:
    """Is the trained model good enough for its hit rates to mean something? Gates and the figures behind them."""
    job, k = reference_job_of(recipe), recipe.validation.top_k
    requests = heldout_requests(job)
    assert requests.targets_n3 is not None
    reference = make_reference(job, folders_of(recipe).reference)
    fp32 = hits(reference.sids_nW3, requests.targets_n3, k)
    train = read_requests(request_file(recipe.checkpoint.parent / "data", "train"), DEMO_CONFIG, need_targets=True)
    assert train.targets_n3 is not None
    popularity = popularity_hits(train.targets_n3, requests.targets_n3, k)
    hit, baseline = float(fp32.mean()), float(popularity.mean())
    low, high = HIT_RANGE
    gates = [
        gate(f"demo model hit@{k}, not too hard", "fp32", hit, ">=", low),
        gate(f"demo model hit@{k}, not too easy", "fp32", hit, "<=", high),
        gate("demo model against popularity", "fp32", hit, ">=", TIMES_POPULARITY * baseline, f"popularity {baseline:.3f}"),
    ]
    interval = paired_interval(fp32, np.zeros_like(fp32))
    figures = {
        f"hit@{k} fp32": hit,
        f"hit@{k} fp32 interval": list(interval),
        f"hit@{k} popularity": baseline,
        "heldout requests": len(requests),
    }
    return gates, figures


def data_stage(folder: Path) -> Stage:
    """The stage that makes the requests of the synthetic world."""

    def body(temporary: Path) -> dict[str, Any]:
        make_demo_data(temporary)
        return {}

    options = {"world": repr(DEMO_WORLD), "users": DEMO_USERS, "seed": DEMO_SEED}
    return Stage(name="data", folder=folder, sources=SOURCES, tools=("numpy", "pyarrow"), options=options, body=body)


def train_stage(data: Path, folder: Path) -> Stage:
    """The stage that trains the demo's model on the data."""

    def body(temporary: Path) -> dict[str, Any]:
        write_checkpoint(train_demo(data), temporary)
        return {}

    return Stage(
        name="train",
        folder=folder,
        sources=SOURCES,
        tools=("torch",),
        options={"config": DEMO_CONFIG.model_dump(mode="json"), "training": repr(DEMO_TRAINING)},
        inputs=lambda: {"train": request_file(data, "train")},
        body=body,
    )


def _require_own_files(out: Path) -> None:
    """Refuse to replace a report, a summary or a recipe that is not the demo's."""
    require_own_summary(out)
    require_own_fidelity(out / FIDELITY_FILE)
    hint = "move it away, or choose another output folder; nothing was changed"
    for path, text in ((_recipe_file(out, name), _recipe_text(name)) for name in DEMO_RECIPES):
        if path.exists() and (not path.is_file() or path.read_bytes() != text.encode()):
            hint = f"run it with `onerec-trt run {path}`, or {hint}"
            raise ArtifactError("the demo would replace a recipe that is not its own", where=str(path), hint=hint)


def _recipe_file(out: Path, name: str) -> Path:
    return out / "recipes" / f"{name}.yaml"


def _recipe_text(name: str) -> str:
    return (files("onerec_trt.configs") / f"demo-{name}.yaml").read_text(encoding="utf-8")


def _recipe(out: Path, name: str) -> Recipe:
    """A recipe of the demo before its file is there."""
    return parse_recipe(yaml.safe_load(_recipe_text(name)), base=_recipe_file(out, name).parent)


def _copied(out: Path, name: str) -> Path:
    write_text(path := _recipe_file(out, name), _recipe_text(name))
    return path
