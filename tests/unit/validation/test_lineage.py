"""Validation refuses artifacts that are not those the recipe makes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration import stage as calibration_stage
from onerec_trt.core.artifacts import read_json, write_json
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.recipe import Profile, Recipe, load_recipe
from onerec_trt.core.records import RECORD_NAME
from onerec_trt.core.sources import Sources
from onerec_trt.export import stage
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import write_requests
from onerec_trt.tools.pipeline import folders_of, reference_job_of, stages_of
from onerec_trt.validation.fp32_reference import heldout_requests
from onerec_trt.validation.lineage import require_lineage


@pytest.fixture
def recipe(world: Path) -> Recipe:
    return load_recipe(world / "fp16.yaml")


def require(recipe: Recipe, **folders: Path) -> None:
    """The lineage of a recipe's first two stages; `calibrate` and `export` name other folders to look at."""
    first_two = stages_of(recipe)[:2]
    require_lineage(*(replace(stage, folder=folders.get(stage.name, stage.folder)) for stage in first_two))


def test_a_finished_run_is_accepted(recipe: Recipe) -> None:
    require(recipe)


def test_another_checkpoint_is_refused(recipe: Recipe, small_model: Callable[[], OneRec]) -> None:
    model = small_model()
    with torch.no_grad():
        model.heads[0].weight[0, 0] += 1e-3
    save_checkpoint(model, recipe.checkpoint)
    with pytest.raises(ArtifactError, match="'calibrate' was made from another checkpoint") as caught:
        require(recipe)
    assert caught.value.hint == "run `onerec-trt calibrate` with this recipe"


def test_other_calibration_requests_are_refused(recipe: Recipe) -> None:
    write_requests(recipe.requests, heldout_requests(reference_job_of(recipe)))
    with pytest.raises(ArtifactError, match="another requests"):
        require(recipe)


def test_a_key_map_that_calibration_did_not_know_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    (tmp_path / "keys.yaml").write_text("a: b\n")
    with pytest.raises(ArtifactError, match="another key map"):
        require(recipe.model_copy(update={"key_map": tmp_path / "keys.yaml"}))


@pytest.mark.parametrize("name", ["key_map", "saved_state"])
def test_an_input_that_the_recipe_no_longer_names_is_refused(recipe: Recipe, name: str) -> None:
    file = folders_of(recipe).calibrated / RECORD_NAME
    record = read_json(file)
    write_json(file, {**record, "read": {**record["read"], name: "0" * 64}})
    with pytest.raises(ArtifactError, match=f"another {name.replace('_', ' ')}"):
        require(recipe)


def test_another_longest_context_is_refused(recipe: Recipe) -> None:
    build = recipe.build.model_copy(update={"profiles": (Profile(batch=(1, 1, 1), context=(1, 2, 3)),)})
    with pytest.raises(ArtifactError, match="another max context"):
        require(recipe.model_copy(update={"build": build}))


@pytest.mark.parametrize("option", ["max_requests", "batch_size", "min_routed_tokens"])
def test_other_options_of_the_calibration_are_refused(recipe: Recipe, option: str) -> None:
    calibration = recipe.calibration.model_copy(update={option: 7})
    with pytest.raises(ArtifactError, match=f"another {option.replace('_', ' ')}"):
        require(recipe.model_copy(update={"calibration": calibration}))


def test_another_precision_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ArtifactError, match="another precision"):
        require(recipe.model_copy(update={"precision": "fp8-row"}))


def test_another_beam_is_refused(recipe: Recipe) -> None:
    with pytest.raises(ArtifactError, match="'export' was made from another beam"):
        require(recipe.model_copy(update={"export": recipe.export.model_copy(update={"beam": (8, 8, 8)})}))


def test_a_graph_that_another_version_wrote_is_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage, "SOURCES", Sources(("core",)))
    with pytest.raises(ArtifactError, match="'export' was made from another version of its code") as caught:
        require(recipe)
    assert caught.value.hint == "run `onerec-trt export` with this recipe"


def test_weights_that_another_version_calibrated_are_refused(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration_stage, "SOURCES", Sources(("core",)))
    with pytest.raises(ArtifactError, match="'calibrate' was made from another version of its code"):
        require(recipe)


def test_a_graph_of_another_quantized_checkpoint_is_refused(recipe: Recipe, world: Path) -> None:
    other = folders_of(load_recipe(world / "fp8-row.yaml"))
    with pytest.raises(ArtifactError, match="another quantized checkpoint"):
        require(recipe, export=other.exported)


@pytest.mark.parametrize("file", ["exported/model.onnx", "exported/weights.data", "calibrated/quantization.json"])
def test_a_changed_byte_is_refused(recipe: Recipe, file: str) -> None:
    path = folders_of(recipe).root / file
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ArtifactError, match="does not match its record") as caught:
        require(recipe)
    assert caught.value.where == str(path)


def test_a_stage_that_never_ran_is_named(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="file not found"):
        require(recipe, export=tmp_path)
