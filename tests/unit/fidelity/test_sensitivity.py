"""Errors of kinds and layers, simulated in FP32, and the mixed recipe they lead to."""

from __future__ import annotations

import json

import pytest
import torch
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.difference import difference
from onerec_trt.core.errors import RecipeError
from onerec_trt.export.packed_context import ContextEncoder, attend
from onerec_trt.fidelity.checkpoint_sensitivity import CheckpointSensitivity
from onerec_trt.fidelity.mixed import search
from onerec_trt.fidelity.packed_source import PackedSource
from onerec_trt.fidelity.packed_systems import run_packed
from onerec_trt.fidelity.quantized_parts import ContextAttention, quantized_parts
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
    parts = [*quantized_targets(model.config, "fp8-static"), ContextAttention(0)]
    with simulated(model, parts, trained.input_amax):
        assert not torch.equal(model.state_dict()["blocks.0.ffn.down.weight"], before["blocks.0.ffn.down.weight"])
        assert "attend" in vars(model.blocks[0].cross_attention)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert sum(len(module._forward_pre_hooks) for module in model.modules()) == hooks
    assert "attend" not in vars(model.blocks[0].cross_attention)


def test_nothing_quantized_has_no_error(probe: Probe) -> None:
    assert score_error(probe, []) < 1e-5


@pytest.mark.parametrize("precision", ["fp8-static", "fp8-paper-attention"])
def test_a_simulation_errs_like_the_packed_model(probe: Probe, trained: Trained, precision: str) -> None:
    system = run_packed(trained.fp32, PackedSource(trained.fp32.model, precision, trained.input_amax), precision)
    reference = trained.fp32.reference
    packed = abs(system.outputs.scoring_nW3.sum(-1) - reference.scoring_nW3.sum(-1))[:16][:, [0, 5, 10, 15]].mean()
    assert score_error(probe, quantized_parts(probe.model.config, precision)) == pytest.approx(float(packed), rel=0.35)


def test_attention_is_simulated_by_its_own_codes(trained: Trained) -> None:
    """Of the first block alone, beside the packed context and the operator, but for roundings to FP16."""
    model, batch = trained.fp32.model, trained.heldout.batch(range(8))
    attention, lengths_B = model.blocks[0].cross_attention, batch.lengths_B3.sum(1)
    query_BHXd = torch.randn(8, model.config.n_heads, 3, model.config.d_head, generator=torch.Generator().manual_seed(0))
    packed = ContextEncoder(PackedSource(model, "fp8-paper-attention", {}))(batch.features_BSF.half(), batch.lengths_B3)[0]
    expected = attend(query_BHXd.transpose(1, 2).flatten(2).flatten(0, 1).half(), packed, lengths_B, 3)
    with torch.no_grad(), simulated(model, [ContextAttention(0)], {}):
        context = model.context(batch.features_BSF, batch.lengths_B3)
        found = attention.attend(query_BHXd, context.sets[0], context.valid_BS)
    rows = found.transpose(1, 2).flatten(2).flatten(0, 1)
    exact = attention.attend(query_BHXd, context.sets[0], context.valid_BS).transpose(1, 2).flatten(2).flatten(0, 1)
    assert difference(rows.numpy(), expected.float().numpy()) < 0.1 * difference(rows.numpy(), exact.detach().numpy())


def test_attention_in_fp8_is_a_kind_of_its_own_and_a_layer_of_each_block(probe: Probe) -> None:
    found = sensitivity(probe, "fp8-paper-attention")
    kind = next(unit for unit in found.kinds if unit.unit == "cross attention")
    layers = [unit for unit in found.layers if unit.unit.endswith(".cross.attention")]
    assert {unit.unit for unit in layers} == {"blocks.0.cross.attention", "blocks.1.cross.attention"}
    assert (kind.linears, [unit.linears for unit in layers]) == (0, [0, 0])
    assert kind.error > max(unit.error for unit in layers) > 0
    assert kind.share == pytest.approx(sum(unit.share for unit in layers))
    assert sum(unit.share for unit in found.kinds) == pytest.approx(1)
    recipe = search(probe, found, 0.0)
    assert set(recipe.kept) == {unit.unit for unit in found.layers}


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


def test_a_mixed_recipe_reaches_its_target_with_the_layers_that_gain_most_for_their_time(probe: Probe, found: Sensitivity) -> None:
    recipe = search(probe, found, 0.5 * found.all_at_once)
    assert recipe.reached
    assert 0 < len(recipe.kept) < len(found.layers)
    gain_over_cost = {unit.unit: unit.error**2 / unit.share for unit in found.layers}
    left = min(gain_over_cost[unit] for unit in recipe.kept)
    assert all(gain < left for unit, gain in gain_over_cost.items() if unit not in recipe.kept)
    assert recipe.kept != tuple(unit.unit for unit in found.layers[: len(recipe.kept)]), "by error alone it would be another list"
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
