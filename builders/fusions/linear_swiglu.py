"""SwiGLU, and its quantization by a static scale, in the product of gate and up: neither goes through memory."""

from __future__ import annotations

from collections.abc import Sequence

from ...operators.linear_swiglu import fp8_linear_swiglu_quant_tensor, linear_swiglu
from .fusion import Fusion, Part, Shape, one_scale

ACTIVATION_SCALE = 1  # input of Fp8Linear


def static_scales(shapes: Sequence[Shape | None]) -> bool:
    """One number for the input, one for the result."""
    return shapes[ACTIVATION_SCALE] == (1,) and one_scale(shapes)


linear_swiglu_fusion = Fusion(name="linear-swiglu", parts=(Part("Linear"), Part("SwiGlu")), fused=linear_swiglu)
fp8_linear_swiglu_quant_tensor_fusion = Fusion(
    name="fp8-linear-swiglu-quant-tensor",
    parts=(Part("Fp8Linear"), Part("SwiGluQuantTensor")),
    fused=fp8_linear_swiglu_quant_tensor,
    fits=static_scales,
)
