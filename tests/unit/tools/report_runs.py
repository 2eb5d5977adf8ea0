"""Reads a made-up run (see `make_run`) as the report does."""

from __future__ import annotations

from pathlib import Path

from onerec_trt.core.recipe import load_recipe
from onerec_trt.tools.report import RecipeRun, load_run


def load(root: Path) -> RecipeRun:
    """The run in a folder; its recipe lies beside."""
    return load_run(load_recipe(root.with_suffix(".yaml")))
