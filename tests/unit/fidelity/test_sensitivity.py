"""Errors of kinds and layers, simulated in FP32, and the mixed recipe they lead to."""

from __future__ import annotations

import json

import pytest
import torch
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.errors import RecipeError
from onerec_trt.fidelity.checkpoint_sensitivity import CheckpointSensitivity
from onerec_trt.fidelity.mixed import search
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.fidelity.packed_systems import run_packed
from onerec_trt.fidelity.sensitivity import Probe, Sensitivity, make_probe, score_error, sensitivity
from onerec_trt.fidelity.simulation import simulated
from onerec_trt.tools.fidelity import command

from .conftest import Trained


@pytest.fixture(scope="module")
def probe(trained: Trained) -> Probe:
    return make_probe(trained.fp32.model, trained.heldout, trained.fp32.reference, trained.input_amax, 16, 4, 16)


@pytest.fixture(scope="module")
def found(probe: Probe) -> Sensitivity:
    return sensitivity(probe, "fp8-static")


def test_the_model_is_as_before_after_a_simulation(trained: Trained) -> None:
    model = trained.model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    hooks = sum(len(module._forward_pre_hooks) for module in model.modules())
    with simulated(model, quantized_targets(model.config, "fp8-static"), trained.input_amax):
        assert not torch.equal(model.state_dict()["blocks.0.ffn.down.weight"], before["blocks.0.ffn.down.weight"])
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks


def test_nothing_quantized_has_no_error(probe: Probe) -> None:
    assert score_error(probe, []) < 1e-5


def test_a_simulation_errs_like_the_packed_model(probe: Probe, trained: Trained) -> None:
    system = run_packed(trained.fp32, PackedSource(trained.fp32.model, "fp8-static", trained.input_amax), "fp8-static")
    reference = trained.fp32.reference
    packed = abs(system.outputs.scoring_nW3.sum(-1) - reference.scoring_nW3.sum(-1))[:16][:, [0, 5, 10, 15]].mean()
    simulated_error = score_error(probe, quantized_targets(probe.model.config, "fp8-static"))
    assert simulated_error == pytest.approx(float(packed), rel=0.35)


def test_kinds_and_layers_are_all_there_worst_first(found: Sensitivity) -> None:
    assert {unit.unit for unit in found.kinds} == {
        *("cross q", "cross o", "self qkv", "self o"),
        *("ffn gate_up", "ffn down", "expert gate_up", "expert down"),
    }
    assert len(found.layers) == 2 * 4 + 2 + 1, "experts of a block are one operator"
    for units in (found.kinds, found.layers):
        assert [unit.error for unit in units] == sorted((unit.error for unit in units), reverse=True)
        assert sum(unit.share for unit in units) == pytest.approx(1)
    assert found.kinds[0].error < 1.2 * found.all_at_once


def test_a_mixed_recipe_reaches_its_target_with_the_worst_layers_in_fp16(probe: Probe, found: Sensitivity) -> None:
    recipe = search(probe, found, 0.5 * found.all_at_once)
    assert recipe.reached
    assert 0 < len(recipe.kept) < len(found.layers)
    assert recipe.kept == tuple(unit.unit for unit in found.layers[: len(recipe.kept)])
    assert recipe.error <= recipe.target < recipe.error_without
    assert recipe.slower == pytest.approx(1 + recipe.share)


def test_a_target_that_is_met_already_keeps_nothing_and_one_of_zero_keeps_all(probe: Probe, found: Sensitivity) -> None:
    easy, hard = search(probe, found, 1.0), search(probe, found, 0.0)
    assert (easy.kept, easy.slower) == ((), 1.0)
    assert (len(hard.kept), hard.share, hard.error) == (len(found.layers), pytest.approx(1), 0.0)


def test_the_command_names_the_layers_to_keep(trained: Trained, capsys: pytest.CaptureFixture[str]) -> None:
    command.sensitivity(trained.checkpoint, trained.calibration_file, True, precision="fp8-row", limit=8)
    found = CheckpointSensitivity.model_validate(json.loads(capsys.readouterr().out))
    assert found.mixed.reached
    assert found.mixed.target == pytest.approx(0.5 * found.sensitivity.all_at_once)
    command.sensitivity(trained.checkpoint, trained.calibration_file, False, precision="fp8-row", limit=8)
    assert found.mixed.kept[0] in capsys.readouterr().out


@pytest.mark.parametrize("precision", ["fp16", "fp4"])
def test_a_precision_that_quantizes_nothing_is_refused(trained: Trained, precision: str) -> None:
    with pytest.raises(RecipeError, match="no precision that quantizes"):
        command.sensitivity(trained.checkpoint, trained.calibration_file, False, precision=precision, limit=8)


@pytest.mark.parametrize("target", [float("nan"), float("inf")])
def test_a_target_that_is_no_error_is_refused(trained: Trained, target: float) -> None:
    with pytest.raises(RecipeError, match="no error in nat"):
        command.sensitivity(trained.checkpoint, trained.calibration_file, True, precision="fp8-row", target=target, limit=8)


def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(RecipeError, match="cannot be used"):
        command.chosen_device("no-such-device")
