"""The calibrate stage run at once."""

from __future__ import annotations

from pathlib import Path

from onerec_trt.calibration.stage import Calibration, calibrate_stage
from onerec_trt.core.recipe import Recipe
from onerec_trt.core.records import Record
from onerec_trt.core.stages import run_stage


def calibrate(recipe: Recipe, checkpoint: Path, requests: Path, folder: Path) -> Record:
    """Quantize a checkpoint as a recipe says, whatever files the recipe names."""
    options = (recipe.precision, recipe.max_context, recipe.calibration)
    job = Calibration(*options, checkpoint, requests, recipe.key_map, recipe.keep_fp16)
    return run_stage(calibrate_stage(job, folder))
