"""Packed layers: weights packed the way operators want them, and the operator that each precision calls.

Packing happens once, here: q, k and v lie in one matrix, gate and up in one, all experts of a layer
in one, shared experts after the routed ones. Nothing here knows how layers are connected.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calibration.targets import granularities
from ..core.precision import BLOCK, Granularity, Precision
from ..models.config import NORM_EPSILON, OneRecConfig
from ..models.layout import Kind, layout
from ..operators import fp8
from ..operators.fp8_linear import fp8_linear, fp8_linear_add
from ..operators.linear import linear, linear_add
from ..operators.moe_experts import moe_experts
from ..operators.moe_experts_fp8 import moe_experts_fp8_row, moe_experts_fp8_tensor
from ..operators.moe_experts_fp8_block import moe_experts_fp8_block
from ..operators.moe_experts_fp8_row_block import moe_experts_fp8_row_block
from ..operators.moe_route import moe_route
from ..operators.operator import scope
from ..operators.quant import quant_row, quant_tensor
from ..operators.rms_norm import rms_norm
from ..operators.rms_norm_quant import rms_norm_quant_block, rms_norm_quant_row, rms_norm_quant_tensor
from ..operators.swiglu import swiglu, swiglu_quant_row, swiglu_quant_tensor


class TensorSource(Protocol):
    """A quantized checkpoint: tensors by the model's own names, `NAME.weight_scale` and `NAME.input_scale` beside codes."""

    @property
    def config(self) -> OneRecConfig: ...
    @property
    def scheme(self) -> Precision: ...
    def tensor(self, name: str, /) -> Tensor: ...


class Activation(NamedTuple):
    """What a matrix multiplication reads: FP16 values without a scale, or E4M3 codes with theirs."""

    values: Tensor
    scale: Tensor | None


def granularity_of(source: TensorSource, kind: Kind, layer: int) -> Granularity:
    """How linears of a kind in a block are quantized; NONE: they stay in FP16."""
    return granularities(source.config, source.scheme)[layout(source.config).names(kind, layer)[0]]


def _shared_input_scale(source: TensorSource, names: Sequence[str]) -> Tensor:
    scales = torch.stack([source.tensor(f"{name}.input_scale").reshape(()) for name in names])
    assert (scales == scales[0]).all(), f"{names} read one tensor and must share one input scale"
    return scales[:1]


class PackedNorm(nn.Module):
    """RMSNorm in front of the linears `consumers`, quantized as they want it; gives the FP16 norm too."""

    weight: Tensor
    input_scale: Tensor

    def __init__(self, source: TensorSource, name: str, granularity: Granularity, consumers: Sequence[str] = ()) -> None:
        super().__init__()
        self.granularity = granularity
        self.register_buffer("weight", source.tensor(f"{name}.weight"))
        if granularity is Granularity.TENSOR:
            self.register_buffer("input_scale", _shared_input_scale(source, consumers))

    def forward(self, h_ND: Tensor) -> tuple[Activation, Tensor]:
        if self.granularity is Granularity.NONE:
            (norm,) = rms_norm(h_ND, self.weight, epsilon=NORM_EPSILON)
            return Activation(norm, None), norm
        if self.granularity is Granularity.TENSOR:
            codes, norm = rms_norm_quant_tensor(h_ND, self.weight, self.input_scale, epsilon=NORM_EPSILON)
            return Activation(codes, self.input_scale), norm
        operator = rms_norm_quant_row if self.granularity is Granularity.ROW else rms_norm_quant_block
        codes, scale, norm = operator(h_ND, self.weight, epsilon=NORM_EPSILON)
        return Activation(codes, scale), norm


class PackedQuantizer(nn.Module):
    """Quantizes an FP16 tensor for the linears `consumers`; `bound` is what none of its values exceeds, for the precision that asks."""

    input_scale: Tensor

    def __init__(self, source: TensorSource, granularity: Granularity, consumers: Sequence[str], bound: Tensor | None = None) -> None:
        super().__init__()
        assert granularity is not Granularity.BLOCK, "only experts take blocks, and they quantize within themselves"
        self.granularity = granularity
        if granularity is Granularity.TENSOR:
            self.register_buffer("input_scale", _shared_input_scale(source, consumers))
        elif granularity is Granularity.BOUND:
            assert bound is not None
            self.register_buffer("input_scale", fp8.scale_of(bound).reshape(1))

    def forward(self, x_ND: Tensor) -> Activation:
        if self.granularity is Granularity.NONE:
            return Activation(x_ND, None)
        if self.granularity in (Granularity.TENSOR, Granularity.BOUND):
            return Activation(quant_tensor(x_ND, self.input_scale)[0], self.input_scale)
        return Activation(*quant_row(x_ND))


def attended_bound(source: TensorSource, kv_set: int) -> Tensor:
    """What no result of attention to a key/value set exceeds, FP32, no axes: it is a mean of values."""
    norm = "value_norms" if source.config.s_kv == 2 else "key_norms"
    return norm_bound(source.tensor(f"context.{norm}.{kv_set}.weight"))


def norm_bound(weight_d: Tensor) -> Tensor:
    """What no RMSNorm of d channels times a weight exceeds, FP32, no axes: x_i / sqrt(mean(x^2)) is at most sqrt(d)."""
    return weight_d.float().abs().max() * math.sqrt(len(weight_d))


class PackedSwiGlu(nn.Module):
    """SiLU(gate) * up, quantized for the linears `consumers`."""

    input_scale: Tensor

    def __init__(self, source: TensorSource, granularity: Granularity, consumers: Sequence[str]) -> None:
        super().__init__()
        self.granularity = granularity
        if granularity is Granularity.TENSOR:
            self.register_buffer("input_scale", _shared_input_scale(source, consumers))

    def forward(self, gate_up_N2H: Tensor) -> Activation:
        if self.granularity is Granularity.NONE:
            return Activation(swiglu(gate_up_N2H)[0], None)
        if self.granularity is Granularity.TENSOR:
            return Activation(swiglu_quant_tensor(gate_up_N2H, self.input_scale)[0], self.input_scale)
        return Activation(*swiglu_quant_row(gate_up_N2H))


class PackedLinear(nn.Module):
    """One or more linears of the model that read the same tensor, as one matrix."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, source: TensorSource, names: Sequence[str], granularity: Granularity) -> None:
        super().__init__()
        self.granularity = granularity
        self.register_buffer("weight", torch.cat([source.tensor(f"{name}.weight") for name in names]))
        if granularity is not Granularity.NONE:
            self.register_buffer("weight_scale", torch.cat([source.tensor(f"{name}.weight_scale") for name in names]))

    def forward(self, x: Activation, residual_NM: Tensor | None = None) -> Tensor:
        if x.scale is None:
            outputs = linear(x.values, self.weight) if residual_NM is None else linear_add(x.values, self.weight, residual_NM)
        elif residual_NM is None:
            outputs = fp8_linear(x.values, x.scale, self.weight, self.weight_scale, promotion=0)
        else:
            outputs = fp8_linear_add(x.values, x.scale, self.weight, self.weight_scale, residual_NM, promotion=0)
        return outputs[0]


class PackedFfn(nn.Module):
    """Dense SwiGLU block with its norm and residual."""

    def __init__(self, source: TensorSource, layer: int) -> None:
        super().__init__()
        linears = layout(source.config)
        gate_up, down = linears.names("ffn gate_up", layer), linears.names("ffn down", layer)
        inward, outward = granularity_of(source, "ffn gate_up", layer), granularity_of(source, "ffn down", layer)
        self.norm = PackedNorm(source, f"blocks.{layer}.ffn_norm", inward, gate_up)
        self.gate_up = PackedLinear(source, gate_up, inward)
        self.activation = PackedSwiGlu(source, outward, down)
        self.down = PackedLinear(source, down, outward)

    def forward(self, h_ND: Tensor) -> Tensor:
        with scope("norm"):
            x, _ = self.norm(h_ND)
        with scope("gate_up"):
            gate_up = self.gate_up(x)
        with scope("activation"):
            hidden = self.activation(gate_up)
        with scope("down"):
            down: Tensor = self.down(hidden, h_ND)
        return down


# By granularity of the input and of the hidden activations.
_DYNAMIC_EXPERTS = {
    (Granularity.ROW, Granularity.ROW): moe_experts_fp8_row,
    (Granularity.ROW, Granularity.ROW_BLOCK): moe_experts_fp8_row_block,
    (Granularity.BLOCK, Granularity.BLOCK): moe_experts_fp8_block,
}


class PackedMoe(nn.Module):
    """Mixture of experts with its norm, router and residual."""

    router: Tensor
    selection_bias: Tensor
    gate_up: Tensor
    gate_up_scale: Tensor
    down: Tensor
    down_scale: Tensor
    hidden_scale: Tensor

    def __init__(self, source: TensorSource, layer: int) -> None:
        super().__init__()
        moe, linears = source.config.moe, layout(source.config)
        assert moe is not None
        self.moe = moe
        self.granularity, self.hidden = granularity_of(source, "expert gate_up", layer), granularity_of(source, "expert down", layer)
        gate_up, downs = linears.names("expert gate_up", layer), linears.names("expert down", layer)
        self.experts = len(downs)
        (router,) = linears.names("router", layer)
        self.norm = PackedNorm(source, f"blocks.{layer}.ffn_norm", self.granularity, gate_up)
        self.register_buffer("router", source.tensor(f"{router}.weight").float())
        self.register_buffer("selection_bias", source.tensor(f"blocks.{layer}.ffn.selection_bias").float())
        self._pack("gate_up", source, gate_up)
        self._pack("down", source, downs)
        if self.granularity is Granularity.TENSOR:
            self.register_buffer("hidden_scale", torch.stack([source.tensor(f"{d}.input_scale").reshape(()) for d in downs]))

    def _pack(self, name: str, source: TensorSource, linears: Sequence[str]) -> None:
        weights = [source.tensor(f"{linear_name}.weight") for linear_name in linears]
        if self.granularity is Granularity.NONE:
            self.register_buffer(name, torch.cat(weights))
            return
        scales = [source.tensor(f"{linear_name}.weight_scale") for linear_name in linears]
        if self.granularity is Granularity.BLOCK:
            scales = [fp8.expand_block_scale(s, len(w)) for s, w in zip(scales, weights, strict=True)]
            if name == "gate_up":  # hidden channels are padded to whole blocks, so that down's blocks line up
                weights, scales = [_pad_rows(w, 0) for w in weights], [_pad_rows(s, 1) for s in scales]
        self.register_buffer(name, torch.cat(weights))
        self.register_buffer(f"{name}_scale", torch.cat(scales))

    def forward(self, h_ND: Tensor) -> Tensor:
        with scope("norm"):
            x, norm_ND = self.norm(h_ND)
        with scope("route"):
            index, weight = moe_route(norm_ND, self.router, self.selection_bias, top_k=self.moe.top_k, shared=self.moe.shared)
        with scope("experts"):
            if x.scale is None:
                return moe_experts(x.values, self.gate_up, self.down, index, weight, h_ND, experts=self.experts)[0]
            weights = (self.gate_up, self.gate_up_scale, self.down, self.down_scale)
            if self.granularity is Granularity.TENSOR:
                inputs = (x.values, x.scale, *weights, self.hidden_scale, index, weight, h_ND)
                return moe_experts_fp8_tensor(*inputs, experts=self.experts, promotion=0)[0]
            operator = _DYNAMIC_EXPERTS[self.granularity, self.hidden]
            return operator(x.values, x.scale, *weights, index, weight, h_ND, experts=self.experts, promotion=0)[0]


def _pad_rows(x: Tensor, value: float) -> Tensor:
    if x.dtype == fp8.E4M3:  # torch cannot pad FP8; code 0x00 is zero
        assert value == 0
        return _pad_rows(x.view(torch.uint8), 0).view(fp8.E4M3)
    return F.pad(x, (0, 0, 0, -len(x) % BLOCK), value=value)
