"""The fidelity table of validated recipes, from what `validate` kept; the in-memory source is the calibrated checkpoint."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.artifacts import read_json, sha256, write_json
from onerec_trt.core.errors import ArtifactError, RecipeError
from onerec_trt.core.recipe import Recipe
from onerec_trt.fidelity import recipes as recipes_module
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.tools.fidelity.command import comparison_of, fidelity, table_of, validated_recipes
from onerec_trt.tools.pipeline import folders_of, validations
from safetensors.numpy import load_file, save_file


def test_the_table_says_what_validation_said(finished_recipe: Callable[[str], Recipe]) -> None:
    recipes = [finished_recipe(precision) for precision in ("fp8-row", "fp16")]
    table = table_of(recipes, "onnxruntime")
    assert [(row.system, row.standing) for row in table.rows] == [("fp16", "noise floor"), ("fp8-row", "quantized")]
    (result,) = validations(recipes[:1])
    row = table.rows[1]
    assert row.cell(f"hit@{result.beams.k}").value == pytest.approx(result.beams.hit)
    low, high = row.cell(f"hit@{result.beams.k}").interval  # a bootstrap's, beside the gate's exact one
    assert low <= result.beams.hit - result.beams.hit_fp32 <= high
    assert row.cell(f"overlap@{result.beams.width}").value == pytest.approx(result.beams.overlap_W)
    assert row.cell("top-1 outside the tie band").value == pytest.approx(result.beams.top1)


def test_a_recipe_validated_again_is_a_row_of_the_noise_floor(finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row")
    table = table_of([recipe], "onnxruntime", again=[recipe])
    assert (table.rows[1].system, table.rows[1].beside) == ("fp8-row, built again", "fp8-row")
    assert table.rows[1].cell(f"overlap@{table.width}").value == 1


def test_a_table_that_grows_computes_no_row_again(finished_recipe: Callable[[str], Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    fp16, row = finished_recipe("fp16"), finished_recipe("fp8-row")
    comparison = comparison_of(fp16, "onnxruntime")
    comparison.table(validated_recipes([fp16], "onnxruntime"))
    both = comparison.table(validated_recipes([fp16, row], "onnxruntime"))
    assert both == table_of([fp16, row], "onnxruntime")
    monkeypatch.setattr(recipes_module, "fidelity_row", lambda *_, **__: pytest.fail("a row was computed again"))
    assert comparison.table(validated_recipes([row, fp16], "onnxruntime")) == both


def test_a_repetition_without_its_recipe_is_refused(finished_recipe: Callable[[str], Recipe]) -> None:
    with pytest.raises(RecipeError, match="no recipe fp16"):
        table_of([finished_recipe("fp8-row")], "onnxruntime", again=[finished_recipe("fp16")])


def test_a_recipe_of_another_reference_is_refused(finished_world: Path, tmp_path: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    shutil.copytree(finished_world, tmp_path / "world")
    recipe = finished_recipe("fp8-row").model_copy(update={"output": tmp_path / "world" / "out"})
    record = folders_of(recipe).reference / "record.json"
    record.write_text(record.read_text() + "\n")
    with pytest.raises(RecipeError, match="another FP32 reference"):
        table_of([recipe], "onnxruntime")


def test_outputs_of_another_version_are_refused(finished_world: Path, tmp_path: Path, finished_recipe: Callable[[str], Recipe]) -> None:
    shutil.copytree(finished_world, tmp_path / "world")
    recipe = finished_recipe("fp8-row").model_copy(update={"output": tmp_path / "world" / "out"})
    path = folders_of(recipe).validated / "outputs.safetensors"
    save_file({"sids_nW3": load_file(path)["sids_nW3"]}, path)
    record = read_json(path.parent / "record.json")
    write_json(path.parent / "record.json", record | {"wrote": record["wrote"] | {path.name: sha256(path)}})
    with pytest.raises(ArtifactError, match="another version"):
        table_of([recipe], "onnxruntime")


def test_the_command_writes_the_table_and_its_page(finished_world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "fidelity.json"
    fidelity([finished_world / "fp16.yaml", finished_world / "fp8-row.yaml"], out, "onnxruntime", [], as_json=True)
    assert json.loads(capsys.readouterr().out) == json.loads(out.read_text())
    assert "overlap@16" in out.with_suffix(".html").read_text()
    fidelity([finished_world / "fp16.yaml"], out, "onnxruntime", [], as_json=False)
    printed = capsys.readouterr().out
    assert "FP32" in printed
    assert "gates passed" not in printed  # bars are those of quantized recipes
    fidelity([finished_world / "fp8-row.yaml"], out, "onnxruntime", [], as_json=False)
    assert "of 4 gates passed" in capsys.readouterr().out


def test_a_file_of_somebody_else_is_not_replaced(finished_world: Path, tmp_path: Path) -> None:
    out = tmp_path / "fidelity.json"
    out.write_text('{"mine": 1}')
    with pytest.raises(ArtifactError, match="not a result of this command"):
        fidelity([finished_world / "fp16.yaml"], out, "onnxruntime", [], as_json=False)
    assert out.read_text() == '{"mine": 1}'


def test_the_source_in_memory_is_the_calibrated_checkpoint(finished_recipe: Callable[[str], Recipe]) -> None:
    recipe = finished_recipe("fp8-row")
    stored = open_quantized(folders_of(recipe).calibrated)
    source = PackedSource(open_checkpoint(recipe.checkpoint).load_model(), "fp8-row", {})
    for name in stored.names:
        actual, expected = source.tensor(name), stored.tensor(name)
        assert actual.dtype == expected.dtype
        assert torch.equal(actual.view(torch.uint8), expected.view(torch.uint8))
