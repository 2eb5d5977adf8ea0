"""Every published size, by shape alone: weights without memory, operators that only promise their outputs."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from onerec_trt.calibration.quantized import stored_forms
from onerec_trt.calibration.targets import quantized_targets
from onerec_trt.core.precision import PRECISIONS, Granularity
from onerec_trt.export.lint import expected_quantized_gemms
from onerec_trt.export.serving import ServingModel
from onerec_trt.models.config import LEVELS, SIZES
from onerec_trt.operators.operator import recorded_calls
from torch._subclasses import FakeTensorMode

BATCH, TOKENS, BEAM = 2, 4, 512


class Shapes:
    """A quantized checkpoint as its description says it must be, without a single value."""

    def __init__(self, config, precision):
        self.config, self.scheme = config, PRECISIONS[precision]
        self._forms = stored_forms(config, quantized_targets(config, precision))

    def tensor(self, name, /):
        shape, dtype = self._forms[name]
        return torch.empty(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("size", "precision"), [*((size, "fp8-paper") for size in SIZES), ("0.1B", "fp16"), ("0.1B", "fp8-paper-attention")]
)
def test_operators_fit_together_in_every_size(monkeypatch, size, precision):
    config, scheme = SIZES[size], PRECISIONS[precision]
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)  # operators then give their promised shapes
    with FakeTensorMode(), recorded_calls() as calls, torch.no_grad():
        serving = ServingModel(Shapes(config, precision), (BEAM,) * LEVELS)
        features = torch.empty(BATCH, TOKENS, config.feature_width, dtype=torch.float16)
        sids, scores = serving(features, torch.empty(BATCH, LEVELS, dtype=torch.int64))
    assert (sids.shape, sids.dtype) == ((BATCH, BEAM, LEVELS), torch.int64)
    assert (scores.shape, scores.dtype) == ((BATCH, BEAM), torch.float32)
    check_counts(Counter(call.operator.name for call in calls), config, scheme)


def check_counts(count, config, scheme):
    moe = sum(config.is_moe(layer) for layer in range(config.n_layers))
    norms = {"ContextKeyCodes": config.l_kv, "ContextValueCodes": config.l_kv}
    norms = norms if scheme.fp8_attention else {"ContextNorm": config.l_kv * config.s_kv}
    attentions = {"ContextAttentionFp8" if scheme.fp8_attention else "ContextAttention": LEVELS * config.n_layers}
    assert {name: number for name, number in count.items() if name.startswith("Context")} == {"ContextFeatures": 1} | norms | attentions
    assert count["BeamSelfAttention1"] == count["BeamSelfAttention2"] == config.n_layers
    assert count["MoeRoute"] == LEVELS * moe
    assert count["BeamStep"] == LEVELS
    quantized = sum(number for name, number in count.items() if name.startswith(("Fp8Linear", "MoeExpertsFp8")))
    assert quantized == expected_quantized_gemms(config, scheme)
    unquantized = count["Linear"] + count["LinearAdd"] + count["MoeExperts"]
    in_fp16 = 0 if scheme.linears is not Granularity.NONE else LEVELS * (6 * config.n_layers - moe)
    assert unquantized == 1 + LEVELS + in_fp16, "the context and the heads stay in FP16"


@pytest.mark.parametrize(("size", "expected"), [("0.1B", 3 * 12 * 6), ("8B", 3 * 34 * 6), ("4B-A0.5B", 3 * (14 * 4 + 2 * 2 + 12))])
def test_quantized_gemms_of_the_published_sizes(size, expected):
    """Cross q and o, self qkv and o, gate_up and down; a layer of experts is one."""
    assert expected_quantized_gemms(SIZES[size], PRECISIONS["fp8-paper"]) == expected
    assert expected_quantized_gemms(SIZES[size], PRECISIONS["fp16"]) == 0
