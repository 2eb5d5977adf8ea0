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


def test_both_targets_have_an_example() -> None:
    assert {load_recipe(path).build.target for path in RECIPES} == {"tensorrt-rtx", "tensorrt"}
