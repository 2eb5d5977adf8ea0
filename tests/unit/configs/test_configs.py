"""Every recipe that ships can be loaded, and is named after its file."""

from __future__ import annotations

from pathlib import Path

import pytest
from onerec_trt import configs
from onerec_trt.core.recipe import load_recipe

FOLDER = Path(configs.__path__[0])
RECIPES = sorted(FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads(path: Path) -> None:
    assert load_recipe(path).name in path.stem


def test_the_published_model_has_recipes_of_its_precisions_and_beams() -> None:
    recipes = [recipe for path in RECIPES if path.stem.startswith("4b-a0.5b") and (recipe := load_recipe(path)).build.plugins]
    assert {recipe.precision for recipe in recipes} == {"fp16", "fp8-row", "fp8-row-block", "fp8-paper", "fp8-paper-attention"}
    assert {recipe.export.beam for recipe in recipes} == {(512, 512, 512), (128, 256, 512)}


def test_both_targets_have_an_example() -> None:
    assert {load_recipe(path).build.target for path in RECIPES} == {"tensorrt-rtx", "tensorrt"}
