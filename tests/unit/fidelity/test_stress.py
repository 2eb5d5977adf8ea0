"""Planted outliers leave FP32 alone, cost a static scale far more than a scale per token, and are named."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from onerec_trt.fidelity.distributions import analyze_model
from onerec_trt.fidelity.sensitivity import Probe, make_probe
from onerec_trt.fidelity.stress import FACTORS, plant_channel, plant_dead_expert, planted_token
from onerec_trt.fidelity.stress_measurement import SCALES, Stress, StressRow, measure_stress
from onerec_trt.fidelity.verdicts import Verdict
from onerec_trt.models.checkpoint import save_checkpoint
from onerec_trt.models.onerec import OneRec
from onerec_trt.tools.fidelity import command

from .conftest import Trained

STATIC, TOKEN, BLOCKS = SCALES


@pytest.fixture(scope="module")
def stress(trained: Trained) -> Stress:
    return measure_stress(probe_of(trained, trained.fp32.model), replace(trained.scoring, batch_size=64))  # AbsP99 needs more than 100 rows


def probe_of(trained: Trained, model: OneRec) -> Probe:
    return make_probe(model, trained.heldout, trained.fp32.reference, trained.input_amax, 32, 8, 16)


def row(stress: Stress, outlier: str, factor: float = 1.0) -> StressRow:
    return next(each for each in stress.rows if (each.outlier, each.factor) == (outlier, factor))


def test_a_planted_channel_changes_nothing_in_fp32(trained: Trained) -> None:
    model = trained.model()
    batch = trained.heldout.batch(range(8))
    assert batch.targets_B3 is not None
    inputs = (batch.features_BSF, batch.lengths_B3, batch.targets_B3[:, None, :2])
    with torch.no_grad():
        before = model(*inputs)
        plant_channel(model, "blocks.0.ffn", 3, FACTORS[0])
        assert torch.equal(model(*inputs), before)


def test_tokens_beyond_the_exponents_cost_a_static_scale_and_no_other(stress: Stress) -> None:
    clean, planted = row(stress, "none"), row(stress, "tokens", FACTORS[-1])
    assert planted.errors[STATIC] > 5 * clean.errors[STATIC]
    for scale in (TOKEN, BLOCKS):
        assert planted.errors[scale] == pytest.approx(clean.errors[scale], rel=0.05)
    assert planted.judgement.verdict is Verdict.ROW


def test_a_channel_beyond_the_exponents_costs_every_scale_but_blocks_the_least(stress: Stress) -> None:
    clean, planted = row(stress, "none"), row(stress, "channel", FACTORS[-1])
    assert planted.errors[STATIC] > 5 * clean.errors[STATIC]
    assert planted.errors[BLOCKS] < 0.7 * min(planted.errors[STATIC], planted.errors[TOKEN])


def test_a_thousandfold_outlier_is_held_by_the_exponents_of_e4m3_and_named_all_the_same(stress: Stress) -> None:
    for outlier in ("channel", "tokens"):
        planted = row(stress, outlier, FACTORS[0])
        assert planted.errors[STATIC] < 2 * row(stress, "none").errors[STATIC]
        assert planted.judgement.outlier
        assert "x AbsP99" in planted.judgement.reason


def test_a_planted_token_is_named_in_a_wide_tensor_too(trained: Trained) -> None:
    """Of 144 rows one is less than a hundredth, of half of them more: AbsP99 would be one of its values."""
    torch.manual_seed(0)
    model = OneRec(trained.fp32.model.config.with_changes(ffn_hidden=4096)).eval()
    probe = make_probe(model, trained.heldout, trained.fp32.reference, {}, 4, 2, 4)
    few = replace(trained.scoring, batch_size=48).first(48)
    assert row(measure_stress(probe, few), "tokens", FACTORS[0]).judgement.outlier


@pytest.mark.parametrize("outlier", ["channel", "tokens"])
@pytest.mark.parametrize("factor", [FACTORS[0], FACTORS[-1]])
def test_the_analysis_names_the_planted_tensor_and_no_other_activation(trained: Trained, outlier: str, factor: float) -> None:
    model, scoring = trained.model(), replace(trained.scoring, batch_size=64)
    assert not [tensor for tensor in analyze_model(model, scoring, "clean").worst if tensor.part == "activation"]
    planted = planted_token(model, "blocks.0.ffn.down", factor) if outlier == "tokens" else nullcontext()
    if outlier == "channel":
        plant_channel(model, "blocks.0.ffn", 3, factor)
    with planted:
        worst = analyze_model(model, scoring, "planted").worst
    assert [tensor.name for tensor in worst if tensor.part == "activation"] == ["blocks.0.ffn.down.input"]


def test_the_command_names_tensor_and_expert_in_the_terminal_and_on_the_page(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = trained.model()
    name, layer = plant_channel(model, "blocks.0.ffn", 3, FACTORS[0]), plant_dead_expert(model, 1, 2)
    save_checkpoint(model, tmp_path / "planted")
    command.analyze(tmp_path / "planted", trained.calibration_file, tmp_path / "page.html", None, None, as_json=False)
    printed, page = capsys.readouterr().out, (tmp_path / "page.html").read_text()
    assert "0 · ffn down input" in printed
    assert name in page
    for text in (printed, page):
        assert f"{layer}: no token was sent to expert 2" in text


def test_an_expert_that_is_never_routed_to_is_named(trained: Trained, stress: Stress) -> None:
    assert stress.expert is not None
    assert stress.expert.named == (stress.expert.expert,)
    model = trained.model()
    layer = plant_dead_expert(model, 1, 2)
    assert [(load.layer, load.never) for load in analyze_model(model, trained.scoring, "planted").experts] == [(layer, (2,))]
