"""Flooding experts, counting natural routes, and leaving no trace behind."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.calibration.observation import Observation, observing
from onerec_trt.calibration.targets import targets_of
from onerec_trt.models.config import OneRecConfig
from onerec_trt.models.onerec import MixtureOfExperts, OneRec
from torch import Tensor

Inputs = tuple[Tensor, Tensor, Tensor]


@pytest.fixture
def inputs() -> Inputs:
    torch.manual_seed(3)
    return torch.randn(4, 6, 48), torch.tensor([[2, 2, 2], [1, 2, 0], [3, 0, 0], [1, 1, 1]]), torch.randint(0, 32, (4, 1, 2))


@torch.no_grad()
def test_every_expert_sees_every_token_and_the_output_stays(model: OneRec, config: OneRecConfig, inputs: Inputs) -> None:
    plain = model(*inputs)
    natural = [block.ffn.last_selected.clone() for block in model.blocks[1:]]  # type: ignore[union-attr, operator]
    seen: list[int] = []
    for expert in model.blocks[1].ffn.experts:  # type: ignore[union-attr]
        expert.register_forward_pre_hook(lambda _, rows: seen.append(len(rows[0])))
    observation = Observation()
    with observing(model, targets_of(config, "fp8-row"), observation):
        flooded = model(*inputs)
    assert seen == [12] * 4  # 4 requests of 3 positions
    torch.testing.assert_close(flooded, plain, rtol=1e-5, atol=1e-6)
    assert [observation.routed[f"blocks.{layer}.ffn"].tolist() for layer in (1, 2)] == [counts.tolist() for counts in natural]
    assert int(observation.routed["blocks.1.ffn"].sum()) == 12 * 2  # top-2


@torch.no_grad()
def test_counts_and_statistics_add_up_over_calls(model: OneRec, config: OneRecConfig, inputs: Inputs) -> None:
    observation = Observation()
    with observing(model, targets_of(config, "fp16"), observation):
        model(*inputs)
        model(*inputs)
    assert int(observation.routed["blocks.2.ffn"].sum()) == 2 * 12 * 2
    activations = observation.activations
    assert activations["blocks.0.self_attention.qkv.input"].sample.seen == 2 * 12
    assert {"blocks.1.ffn.gate_up.input", "blocks.1.ffn.shared.0.down.input", "blocks.2.output", "heads.2.output"} <= activations.keys()
    assert "blocks.1.self_attention.v.output" in activations


def test_no_trace_remains_even_after_an_error(model: OneRec, config: OneRecConfig) -> None:
    with pytest.raises(RuntimeError), observing(model, targets_of(config, "fp16"), Observation()):
        raise RuntimeError
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert not any(module.calibrating for module in model.modules() if isinstance(module, MixtureOfExperts))
