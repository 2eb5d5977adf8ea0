"""The whole stage on a small model: all precisions, resuming, and bad input that leaves nothing behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.quantize import QuantizedWeight
from onerec_trt.calibration.quantized import QuantizedCheckpoint, open_quantized
from onerec_trt.calibration.scoring import read_reference, with_paths
from onerec_trt.calibration.stage import Calibration
from onerec_trt.calibration.statistics import HISTOGRAM_BINS, activation_cast
from onerec_trt.core.errors import CalibrationError, OnerecTrtError
from onerec_trt.core.precision import PRECISIONS
from onerec_trt.core.recipe import Recipe
from onerec_trt.models.checkpoint import open_checkpoint, save_checkpoint
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests, write_requests
from safetensors.torch import save_file

from .stages import calibrate

RecipeFor = Callable[..., Recipe]
FP8 = [name for name, scheme in PRECISIONS.items() if scheme.is_quantized]


def _packed_model(opened: QuantizedCheckpoint, exact: OneRec) -> OneRec:
    """The FP32 model with quantized weights, and inputs that pass through our own casts: no ModelOpt anywhere."""
    for setting in opened.settings:
        module = exact.get_submodule(setting.name)
        assert isinstance(module, torch.nn.Linear)
        quantized = QuantizedWeight(opened.tensor(f"{setting.name}.weight"), opened.tensor(f"{setting.name}.weight_scale"), setting.shape)
        module.weight.data = quantized.dequantized()
        static = f"{setting.name}.input_scale"
        cast = activation_cast(setting.granularity, float(opened.tensor(static)) * 448 if static in opened.names else None)
        module.register_forward_pre_hook(lambda _, inputs, cast=cast: (cast(inputs[0]),))  # type: ignore[misc]
    return exact


@pytest.mark.parametrize("precision", FP8)
def test_the_packed_model_is_as_good_as_modelopts(
    calibrated: Callable[[str], Path], checkpoint_folder: Path, requests: Requests, precision: str
) -> None:
    folder = calibrated(precision)
    reference, exact = read_reference(folder), open_checkpoint(checkpoint_folder).load_model()
    scoring = with_paths(exact, requests, 10)
    torch.testing.assert_close(scoring.log_probabilities(exact), reference.log_probs_fp32, rtol=1e-5, atol=1e-5)
    ours = scoring.log_probabilities(_packed_model(open_quantized(folder), exact))
    # Single codes on rounding boundaries differ and drift to the level of the FP8 noise, so errors are compared, not outputs;
    # test_ptq.py compares linear by linear on identical inputs.
    assert (ours - reference.log_probs_fp32).abs().mean() <= 1.1 * reference.mean_error
    assert 1e-3 < reference.mean_error < 0.1


@pytest.mark.parametrize("precision", list(PRECISIONS))
def test_the_description_is_complete(calibrated: Callable[[str], Path], precision: str) -> None:
    summary = open_quantized(calibrated(precision)).summary
    linears = 51 if precision != "fp16" else 0
    assert len(summary.layers) == linears
    assert len(summary.layers) + len(summary.unquantized) == 59
    assert len(summary.weights) == 59 + len(("token_embedding.weight", "position_embedding.weight"))
    without = {weight.name for weight in summary.weights if weight.score_error is None}
    assert without == {"blocks.1.ffn.router.weight", "blocks.2.ffn.router.weight"}  # FP32, whatever the precision
    assert all(weight.score_error for weight in summary.weights if weight.quantized)
    assert {"blocks.1.ffn.router", "context.pathways.0", "heads.2"} <= set(summary.unquantized)
    assert [len(part.routed_tokens) for part in summary.experts] == [4, 4]
    assert all(sum(part.routed_tokens) == 24 * 3 * 2 for part in summary.experts)  # requests x positions x top-2
    assert sum(part.quantized for part in summary.weights) == linears
    assert sum(part.quantized for part in summary.activations) == (len({layer.input for layer in summary.layers}))
    assert all((part.snr_db or 0) > 20 and (part.cosine or 0) > 0.99 for part in (*summary.weights, *summary.activations) if part.quantized)
    assert {len(part.histogram) for part in (*summary.weights, *summary.activations)} == {HISTOGRAM_BINS}
    assert len(summary.histogram_log10_edges) == HISTOGRAM_BINS + 1
    assert all(part.fp16_ok for part in summary.activations)
    assert summary.checks.requests == 24
    if linears:
        assert summary.checks.weights is not None
        assert summary.checks.weights.linears == linears


def test_only_static_layers_have_input_scales(calibrated: Callable[[str], Path]) -> None:
    static = open_quantized(calibrated("fp8-static")).summary.layers
    scales: dict[str, set[float | None]] = {}
    for layer in static:
        scales.setdefault(layer.input, set()).add(layer.input_scale)
    assert all(len(values) == 1 and None not in values for values in scales.values())
    assert {layer.input_scale for layer in open_quantized(calibrated("fp8-paper")).summary.layers} == {None}


def test_what_is_unchanged_is_not_done_again(
    calibrated: Callable[[str], Path], recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path
) -> None:
    folder = calibrated("fp8-row")
    before = {path: path.stat().st_ino for path in folder.iterdir()}
    record = calibrate(recipe_for("fp8-row"), checkpoint_folder, requests_file, folder)
    assert {path: path.stat().st_ino for path in folder.iterdir()} == before
    assert not record.ran
    assert record.facts["quantized_linears"] == 51
    assert record.read.keys() == {"checkpoint", "requests"}


def test_the_same_input_gives_the_same_bytes(
    calibrated: Callable[[str], Path], recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path
) -> None:
    again = calibrate(recipe_for("fp8-paper"), checkpoint_folder, requests_file, tmp_path / "again")
    assert json.loads((calibrated("fp8-paper") / "record.json").read_text())["wrote"] == again.wrote


def test_max_requests_limits_what_is_seen(recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path) -> None:
    record = calibrate(recipe_for("fp16", max_requests=5), checkpoint_folder, requests_file, tmp_path / "out")
    assert record.facts["requests"] == 5
    assert any("naturally routed" in warning for warning in record.facts["warnings"])


def test_requests_without_targets_serve_too(
    recipe_for: RecipeFor, checkpoint_folder: Path, make_requests: Callable[..., Requests], model: OneRec, tmp_path: Path
) -> None:
    write_requests(tmp_path / "r.parquet", make_requests(model.config, 8, targets=False))
    calibrate(recipe_for("fp8-row", min_routed_tokens=0), checkpoint_folder, tmp_path / "r.parquet", tmp_path / "out")
    assert read_reference(tmp_path / "out").sids.shape == (8, 1, 3)


def test_an_expert_below_the_minimum_stops_static_scales_only(
    recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "earlier").write_text("artifact")
    (tmp_path / "out" / "record.json").write_text('{"stage": "calibrate", "read": {}}')
    with pytest.raises(CalibrationError, match="too few tokens") as error:
        calibrate(recipe_for("fp8-static", min_routed_tokens=1000), checkpoint_folder, requests_file, tmp_path / "out")
    assert "blocks.1.ffn" in error.value.where
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent.name == "out"] == ["earlier", "record.json"]
    record = calibrate(recipe_for("fp8-row", min_routed_tokens=1000), checkpoint_folder, requests_file, tmp_path / "out")
    assert len(record.facts["warnings"]) == 2


def test_experts_that_stay_in_fp16_need_no_coverage(
    recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path
) -> None:
    recipe = recipe_for("fp8-static", min_routed_tokens=1000)
    mixed = recipe.model_copy(update={"keep_fp16": ("blocks.1.ffn.experts",)})
    with pytest.raises(CalibrationError) as error:
        calibrate(mixed, checkpoint_folder, requests_file, tmp_path / "out")
    assert error.value.where.startswith("blocks.2.ffn: ")
    record = calibrate(recipe.model_copy(update={"keep_fp16": ("ffn.experts",)}), checkpoint_folder, requests_file, tmp_path / "out")
    assert len(record.facts["warnings"]) == 2


def test_outliers_of_what_is_quantized_are_named(
    recipe_for: RecipeFor, fresh_model: Callable[[], OneRec], requests_file: Path, tmp_path: Path
) -> None:
    """One hidden channel larger by 2^12, and the weights that read it smaller: FP32 computes the same."""
    model = fresh_model()
    with torch.no_grad():
        model.get_parameter("blocks.0.ffn.up.weight")[3] *= 2.0**12
        model.get_parameter("blocks.0.ffn.down.weight")[:, 3] /= 2.0**12
    save_checkpoint(model, tmp_path / "model")
    record = calibrate(recipe_for("fp8-row"), tmp_path / "model", requests_file, tmp_path / "out")
    assert [warning.split(":")[0] for warning in record.facts["warnings"]] == ["blocks.0.ffn.down.input has outliers"]


@pytest.mark.parametrize("precision", list(PRECISIONS))
@pytest.mark.parametrize(("factor", "refused"), [(3e3, False), (2e5, True)])
def test_activations_near_and_beyond_the_end_of_fp16(
    recipe_for: RecipeFor, model: OneRec, requests_file: Path, tmp_path: Path, precision: str, factor: float, refused: bool
) -> None:
    with torch.no_grad():
        model.blocks[2].ffn.shared[0].down.weight *= factor / 10  # type: ignore[index, union-attr]
        model.blocks[2].ffn_norm.weight *= 10  # type: ignore[operator, union-attr]
    save_checkpoint(model, tmp_path / "model")
    if refused:
        with pytest.raises(CalibrationError, match="FP16 cannot hold") as error:
            calibrate(recipe_for(precision), tmp_path / "model", requests_file, tmp_path / "out")
        assert error.value.where == "blocks.2.ffn.shared.0.down.output"
        assert not (tmp_path / "out").exists()
    else:
        record = calibrate(recipe_for(precision), tmp_path / "model", requests_file, tmp_path / "out")
        assert any(warning.startswith("blocks.2.output: AbsMax") for warning in record.facts["warnings"])
        stats = {part.name: part for part in open_quantized(tmp_path / "out").summary.activations}
        assert 6.5e3 < stats["blocks.2.output"].absmax < 6.5e4


def test_a_saved_state_is_imported(
    calibrated: Callable[[str], Path],
    recipe_for: RecipeFor,
    checkpoint_folder: Path,
    requests_file: Path,
    tmp_path: Path,
) -> None:
    own = open_quantized(calibrated("fp8-static"))
    state = {}
    for setting in own.settings:
        state[f"{setting.name}.weight_quantizer._amax"] = own.tensor(f"{setting.name}.weight_scale")[:, None] * 448
        state[f"{setting.name}.input_quantizer._amax"] = own.tensor(f"{setting.name}.input_scale") * 2 * 448
    save_file(state, tmp_path / "state.safetensors")
    recipe = recipe_for("fp8-static", saved_state=str(tmp_path / "state.safetensors"), min_routed_tokens=1000)  # only warns: not our amax
    record = calibrate(recipe, checkpoint_folder, requests_file, tmp_path / "out")
    imported = open_quantized(tmp_path / "out")
    assert "saved_state" in record.read
    for setting in own.settings:
        name = f"{setting.name}.input_scale"
        torch.testing.assert_close(imported.tensor(name), own.tensor(name) * 2)
    assert len(imported.summary.experts) == 2


def test_names_of_a_users_own_serve_checkpoint_and_saved_state(
    calibrated: Callable[[str], Path], recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path
) -> None:
    checkpoint, own = open_checkpoint(checkpoint_folder), open_quantized(calibrated("fp8-row"))
    (tmp_path / "theirs").mkdir()
    save_file({f"net.{name}": checkpoint.tensor(name) for name in checkpoint.names}, tmp_path / "theirs" / "model.safetensors")
    (tmp_path / "theirs" / "config.json").write_text(checkpoint.config.model_dump_json())
    (tmp_path / "map.yaml").write_text('"{...}": "net.{...}"\n')
    amax = {f"net.{s.name}.weight_quantizer._amax": own.tensor(f"{s.name}.weight_scale") * 448 for s in own.settings}
    save_file(amax, tmp_path / "state.safetensors")
    recipe = recipe_for("fp8-row", saved_state=str(tmp_path / "state.safetensors")).model_copy(update={"key_map": tmp_path / "map.yaml"})
    record = calibrate(recipe, tmp_path / "theirs", requests_file, tmp_path / "out")
    assert record.read.keys() == {"checkpoint", "requests", "key_map", "saved_state"}
    assert open_quantized(tmp_path / "out").names == own.names


def test_a_saved_state_for_fp16_is_a_mistake(recipe_for: RecipeFor, checkpoint_folder: Path, requests_file: Path, tmp_path: Path) -> None:
    save_file({"x": torch.ones(1)}, tmp_path / "state.safetensors")
    recipe = recipe_for("fp16", saved_state=str(tmp_path / "state.safetensors"))
    with pytest.raises(CalibrationError, match="has no use"):
        calibrate(recipe, checkpoint_folder, requests_file, tmp_path / "out")


def test_an_empty_or_missing_request_file_is_refused(
    recipe_for: RecipeFor, checkpoint_folder: Path, requests: Requests, tmp_path: Path
) -> None:
    write_requests(tmp_path / "empty.parquet", requests.select(slice(0)))
    for name in ("empty.parquet", "absent.parquet"):
        with pytest.raises(OnerecTrtError) as error:
            calibrate(recipe_for("fp8-row"), checkpoint_folder, tmp_path / name, tmp_path / "out")
        assert name in error.value.where
        assert error.value.hint
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["key_map", "saved_state"])
def test_a_folder_in_the_place_of_a_file_is_refused_before_it_is_hashed(
    checkpoint_folder: Path, requests_file: Path, recipe_for: RecipeFor, tmp_path: Path, name: str
) -> None:
    options = recipe_for("fp8-static", **({"saved_state": str(tmp_path)} if name == "saved_state" else {})).calibration
    job = Calibration("fp8-static", 3072, options, checkpoint_folder, requests_file, tmp_path if name == "key_map" else None)
    with pytest.raises(CalibrationError, match="is a folder"):
        job.inputs()
