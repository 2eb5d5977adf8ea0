"""SwiGlu and SwiGluQuant{Tensor,Row}: SiLU(gate) * up, in FP32 until it is rounded or quantized."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from onnxscript import script
from torch import Tensor

from . import fp8
from .comparison import compare_codes
from .functions import QuantizeByScale, QuantizeRows, SwiGlu32
from .operator import FP8_THRESHOLD, ONEREC, Operator, Spec, op


def swiglu_in_fp32(gate_up: Tensor) -> Tensor:
    """SiLU(gate) * up of gate and up side by side in the last axis, FP32."""
    gate, up = gate_up.float().chunk(2, -1)
    return F.silu(gate) * up


def swiglu_reference(gate_up_N2H: Tensor) -> tuple[Tensor]:
    return (swiglu_in_fp32(gate_up_N2H).half(),)


def tensor_reference(gate_up_N2H: Tensor, scale: Tensor) -> tuple[Tensor]:
    return (fp8.quantize_tensor(swiglu_in_fp32(gate_up_N2H), scale),)


def row_reference(gate_up_N2H: Tensor) -> tuple[Tensor, Tensor]:
    return fp8.quantize_rows(swiglu_in_fp32(gate_up_N2H))


@script(ONEREC, default_opset=op)
def SwiGlu(gate_up):
    return op.Cast(SwiGlu32(gate_up), to=10)


@script(ONEREC, default_opset=op)
def SwiGluQuantTensor(gate_up, scale):
    return QuantizeByScale(SwiGlu32(gate_up), scale)


@script(ONEREC, default_opset=op)
def SwiGluQuantRow(gate_up):
    codes, scale = QuantizeRows(SwiGlu32(gate_up))
    return codes, scale


def _hidden(gate_up: Tensor) -> tuple[int | torch.SymInt, ...]:
    return (*gate_up.shape[:-1], gate_up.shape[-1] // 2)


swiglu = Operator(
    name="SwiGlu",
    reference=swiglu_reference,
    function=SwiGlu,
    helpers=(SwiGlu32,),
    outputs=lambda gate_up: (Spec(torch.float16, _hidden(gate_up)),),
)
swiglu_quant_tensor = Operator(
    name="SwiGluQuantTensor",
    reference=tensor_reference,
    function=SwiGluQuantTensor,
    helpers=(SwiGlu32, QuantizeByScale),
    outputs=lambda gate_up, scale: (Spec(fp8.E4M3, _hidden(gate_up)),),
    threshold=FP8_THRESHOLD,
)
swiglu_quant_row = Operator(
    name="SwiGluQuantRow",
    reference=row_reference,
    function=SwiGluQuantRow,
    helpers=(SwiGlu32, QuantizeByScale, QuantizeRows),
    outputs=lambda gate_up: (Spec(fp8.E4M3, _hidden(gate_up)), Spec(torch.float32, (*gate_up.shape[:-1], 1))),
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
