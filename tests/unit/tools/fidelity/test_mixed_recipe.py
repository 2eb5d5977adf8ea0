"""The mixed recipe that `sensitivity` writes, taken through the pipeline as it is: FP16 where it says so, FP8 elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import yaml
from onerec_trt.builders.block_scales import without_block_scales
from onerec_trt.builders.native_graph import prepare
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.core.recipe import Recipe, load_recipe
from onerec_trt.export.stage import DESCRIPTION_FILE, SERVING_FILE
from onerec_trt.fidelity.mixed import MixedRecipe
from onerec_trt.fidelity.sensitivity import UnitError
from onerec_trt.models.config import LEVELS
from onerec_trt.models.layout import layout
from onerec_trt.operators.operator import DOMAIN
from onerec_trt.tools.fidelity import command
from onerec_trt.tools.fidelity.mixed_recipe import write_mixed_recipe
from onerec_trt.tools.pipeline import folders_of, run_stages, validations

ALL_LAYERS = 2 * 4 + 2 + 1  # of the world's model: attention of two blocks, a dense FFN, experts


class Mixed(NamedTuple):
    """A world with a mixed recipe that has gone through the pipeline, builds left out."""

    folder: Path
    file: Path
    recipe: Recipe


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory, finished_world: Path) -> Mixed:
    folder = tmp_path_factory.mktemp("mixed")
    base, out = finished_world / "fp8-row.yaml", folder / "mixed.yaml"
    values = yaml.safe_load(base.read_text()) | {"output": str(folder / "out")}
    values |= {key: str(finished_world / values[key]) for key in ("checkpoint", "requests", "heldout")}
    (folder / "base.yaml").write_text(yaml.safe_dump(values))
    recipe = load_recipe(folder / "base.yaml")
    command.sensitivity(recipe.checkpoint, recipe.requests, False, limit=8, recipe_file=folder / "base.yaml", out=out)
    recipe = load_recipe(out)
    for _ in run_stages(recipe, ("calibrate", "export", "validate")):
        pass
    return Mixed(folder, out, recipe)


def units(*places: str) -> list[UnitError]:
    """Layers as sensitivity gives them."""
    return [UnitError(unit=place, linears=int(not place.endswith(".attention")), error=0.1, share=0.1) for place in places]


def test_it_is_the_recipe_it_started_from_but_for_name_and_layers(mixed: Mixed) -> None:
    base = load_recipe(mixed.folder / "base.yaml")
    assert mixed.recipe == base.model_copy(update={"name": "mixed", "keep_fp16": mixed.recipe.keep_fp16})
    assert 0 < len(mixed.recipe.keep_fp16) < ALL_LAYERS


def test_every_gate_passes(mixed: Mixed) -> None:
    (result,) = validations([mixed.recipe])
    assert [gate.sentence() for gate in result.gates if not gate.passed] == []


def test_kept_layers_are_in_fp16_and_all_others_in_fp8(mixed: Mixed) -> None:
    folders = folders_of(mixed.recipe)
    stored = open_quantized(folders.calibrated)
    linears = layout(stored.config).quantizable()
    kept = [linear.name for linear in linears if linear.place in mixed.recipe.keep_fp16]
    assert set(kept) == {linear.name for linear in linears} - {target.name for target in stored.settings}
    assert all(stored.form(f"{name}.weight")[1].itemsize == 2 for name in kept)
    assert not {f"{name}.weight_scale" for name in kept} & set(stored.names)
    graph = onnx.load(folders.exported / SERVING_FILE, load_external_data=False)
    kinds = {node.name: node.op_type for node in graph.graph.node if node.domain == DOMAIN}
    for linear in linears:
        for node in linear.nodes:
            assert ("Fp8" in kinds[node]) != (linear.place in mixed.recipe.keep_fp16), node


def test_a_build_expects_as_many_products_in_fp8(mixed: Mixed) -> None:
    exported = folders_of(mixed.recipe).exported
    graph = prepare(exported / SERVING_FILE, mixed.recipe.build.profiles, without_block_scales)
    places = {name.partition("/")[0] for name in graph.gemms.in_fp8}
    assert len(places) == LEVELS * (ALL_LAYERS - len(mixed.recipe.keep_fp16))
    assert f'"quantized_gemms": {len(places)}' in (exported / DESCRIPTION_FILE).read_text()


def test_the_file_says_why_and_is_replaced_by_its_own_kind_alone(mixed: Mixed) -> None:
    assert "score error" in mixed.file.read_text().splitlines()[0]
    base = mixed.folder / "base.yaml"
    found = MixedRecipe(
        precision="fp8-row", target=1, error=0.5, error_without=2, reached=True, kept=("blocks.0.cross.q",), share=0.1, slower=1.1
    )
    layers = units("blocks.0.cross.q", "blocks.0.cross.o")
    assert write_mixed_recipe(load_recipe(base), found, layers, mixed.folder / "again.yaml").keep_fp16 == ("blocks.0.cross.q",)
    with pytest.raises(ArtifactError, match="not a recipe that this command wrote"):
        command.sensitivity(mixed.recipe.checkpoint, mixed.recipe.requests, False, recipe_file=base, out=base)


@pytest.mark.parametrize("attention", [(), ("blocks.0.cross.attention",)])
def test_a_target_that_leaves_no_linear_in_fp8_gives_no_recipe(mixed: Mixed, attention: tuple[str, ...]) -> None:
    """Calibration would refuse it, also where attention to the context is left."""
    kept = ("blocks.0.cross.q", "blocks.0.cross.o")
    found = MixedRecipe(precision="fp8-row", target=0, error=0, error_without=2, reached=True, kept=kept, share=1, slower=2)
    with pytest.raises(RecipeError, match="leaves no linear in FP8"):
        write_mixed_recipe(mixed.recipe, found, units(*kept, *attention), mixed.folder / "none.yaml")
    assert not (mixed.folder / "none.yaml").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (lambda m: {"recipe_file": m.file}, "needs a recipe to start from and a file"),
        (lambda m: {"recipe_file": m.file, "out": m.folder / "No Name.yaml"}, "name"),
        (lambda m: {"recipe_file": m.file, "out": m.folder / "x.yaml", "checkpoint": m.folder}, "another checkpoint"),
    ],
)
def test_what_cannot_become_a_recipe_is_refused_before_measuring(mixed: Mixed, options: Callable[[Mixed], dict], message: str) -> None:
    given = {"checkpoint": mixed.recipe.checkpoint} | options(mixed)
    with pytest.raises(RecipeError, match=message):
        command.sensitivity(given.pop("checkpoint"), mixed.recipe.requests, False, **given)
