"""The build stage run at once, and exported folders with a record, whatever is in them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from onerec_trt.builders.stage import build_stage
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.records import Record
from onerec_trt.core.sources import Sources
from onerec_trt.core.stages import Stage, run_stage


def build(recipe: Recipe, exported: Path, folder: Path, baseline: Path | None = None) -> Record:
    """Build the plans of a recipe from an exported folder."""
    return run_stage(build_stage(recipe.build, recipe.precision, exported, folder, baseline=baseline))


def exported_folder(folder: Path, body: Callable[[Path], dict[str, Any]]) -> Path:
    """What `body` writes, as if the export stage had written it."""
    run_stage(Stage(name="export", folder=folder, sources=Sources(()), tools=(), options={}, body=body))
    return folder
