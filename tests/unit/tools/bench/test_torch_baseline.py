"""The benchmark's baseline computes what the model computes: same items, same scores, dense and with experts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from onerec_trt.models.beam_search import beam_search
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.tools.bench.torch_baseline import TorchBaseline
from torch import Tensor

BASE: dict[str, Any] = {"d_model": 32, "n_layers": 3, "n_heads": 4, "d_head": 8, "embed_dim": 4, "codebook": 24, "ffn_hidden": 48}
EXPERTS = {"experts": 5, "top_k": 2, "hidden": 16, "shared": 1, "dense_layers": 1}
LENGTHS = (1, 3, 4)


class StateDict:
    """A model's own tensors as a source of weights."""

    def __init__(self, model: OneRec) -> None:
        self.config: OneRecConfig = model.config
        self._tensors = model.state_dict()
        self.names = tuple(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


def model_of(**changes: Any) -> OneRec:
    torch.manual_seed(0)
    model = OneRec(parse_config(BASE | changes)).eval()
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if "norm" in name:
                value.uniform_(0.5, 1.5)
            elif name.endswith("selection_bias"):
                value.normal_(std=0.2)
            else:
                value.normal_(std=0.3)
    return model


def inputs(model: OneRec, batch: int = 3) -> tuple[Tensor, Tensor]:
    features = torch.randn(batch, sum(LENGTHS), model.config.feature_width, generator=torch.Generator().manual_seed(1))
    return features, torch.tensor([LENGTHS] * batch)


@pytest.mark.parametrize("beam", [(6, 6, 6), (2, 5, 9), (100, 100, 7)])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"moe": EXPERTS},
        {"moe": EXPERTS | {"shared": 0}},
        {"moe": EXPERTS | {"shared": 2, "dense_layers": 0}},
        {"l_kv": 3, "s_kv": 2, "g_kv": 2},
    ],
    ids=["dense", "experts", "none shared", "two shared", "shared keys"],
)
def test_it_finds_the_items_of_the_reference_beam_search(changes: dict[str, Any], beam: tuple[int, int, int]) -> None:
    model = model_of(**changes)
    features, lengths = inputs(model)
    expected = beam_search(model, features, lengths, beam)
    sids, scores = TorchBaseline(StateDict(model), dtype=torch.float32, device="cpu")(features, LENGTHS, beam)
    torch.testing.assert_close(scores, expected.scores_BW, rtol=0, atol=2e-5)
    assert torch.equal(sids, expected.sids_BW3)


def test_the_selection_bias_takes_part_in_the_selection_only() -> None:
    model = model_of(moe=EXPERTS)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("selection_bias"):
                value.copy_(torch.tensor([5.0, 0, 0, 0, 5.0]))  # every row goes to the first and the last expert
    features, lengths = inputs(model)
    expected = beam_search(model, features, lengths, (4, 4, 4))
    sids, scores = TorchBaseline(StateDict(model), dtype=torch.float32, device="cpu")(features, LENGTHS, (4, 4, 4))
    torch.testing.assert_close(scores, expected.scores_BW, rtol=0, atol=2e-5)
    assert torch.equal(sids, expected.sids_BW3)


def test_in_bf16_it_stays_near() -> None:
    model = model_of(moe=EXPERTS)
    with torch.no_grad():
        for value in model.parameters():
            value *= 0.3
    features, lengths = inputs(model)
    expected = beam_search(model, features, lengths, (6, 6, 6))
    _, scores = TorchBaseline(StateDict(model), device="cpu")(features, LENGTHS, (6, 6, 6))
    torch.testing.assert_close(scores, expected.scores_BW, rtol=0, atol=0.1)


def test_it_compiles_into_whole_graphs_within_the_limit_of_recompilations() -> None:
    """Dynamo without its code generator: a graph break is an error there, and so is one kind of block and step too many."""
    model = model_of(moe=EXPERTS, n_layers=5)
    features, _ = inputs(model)
    baseline = TorchBaseline(StateDict(model), device="cpu")  # in BF16: compiled code has no other grouped product
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        sids, scores = baseline.compiled("eager")(features, LENGTHS, (4, 5, 6))
    expected_sids, expected_scores = baseline(features, LENGTHS, (4, 5, 6))
    assert torch.equal(scores, expected_scores)
    assert torch.equal(sids, expected_sids)
