"""LinearSwiGlu and Fp8LinearSwiGluQuantTensor: the product of gate and up with SwiGLU of its FP16 result, as one operator.

Fused operators: no exported file holds them; a build with plugins puts them in the place of their parts. References and functions
compose those of the parts, so gate and up are rounded to FP16 before SwiGLU, as they are between the parts.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from .fp8_linear import fp8_linear, fp8_linear_reference
from .functions import PRODUCT_SCALE_FP16, Fp8Linear32, Product, QuantizeByScale, SwiGlu32
from .linear import Linear, linear, linear_reference
from .operator import FP8_THRESHOLD, ONEREC, Operator, op
from .swiglu import SwiGlu, SwiGluQuantTensor, swiglu, swiglu_quant_tensor, swiglu_reference, tensor_reference


def linear_swiglu_reference(x_NK: Tensor, weight_MK: Tensor) -> tuple[Tensor]:
    """FP16 [N, H]; the weight holds H gate rows and H up rows."""
    return swiglu_reference(*linear_reference(x_NK, weight_MK))


def fp8_linear_swiglu_quant_tensor_reference(
    codes_NK: Tensor, scale: Tensor, weight_codes_MK: Tensor, weight_scale_M: Tensor, hidden_scale: Tensor, *, promotion: int
) -> tuple[Tensor]:
    """E4M3 codes [N, H] for one scale [1]; the first inputs are those of Fp8Linear."""
    gate_up = fp8_linear_reference(codes_NK, scale, weight_codes_MK, weight_scale_M, promotion=promotion)
    return tensor_reference(*gate_up, hidden_scale)


@script(ONEREC, default_opset=op)
def LinearSwiGlu(x, weight):
    return SwiGlu(Linear(x, weight))


@script(ONEREC, default_opset=op)
def Fp8LinearSwiGluQuantTensor(codes, scale, weight_codes, weight_scale, hidden_scale, promotion: int):
    # Not a call of Fp8Linear: ONNX Runtime gives a function's inputs no FP8 type where the body hands them to another function.
    unit = op.Constant(value=PRODUCT_SCALE_FP16)
    x = op.DequantizeLinear(codes, unit)
    weight = op.DequantizeLinear(weight_codes, unit)
    gate_up = op.Cast(Fp8Linear32(x, scale, weight, weight_scale), to=10)
    return SwiGluQuantTensor(gate_up, hidden_scale)


linear_swiglu = Operator(
    name="LinearSwiGlu",
    reference=linear_swiglu_reference,
    function=LinearSwiGlu,
    helpers=(Linear, Product, SwiGlu, SwiGlu32),
    outputs=lambda x, weight: swiglu.outputs(*linear.outputs(x, weight)),
)
fp8_linear_swiglu_quant_tensor = Operator(
    name="Fp8LinearSwiGluQuantTensor",
    reference=fp8_linear_swiglu_quant_tensor_reference,
    function=Fp8LinearSwiGluQuantTensor,
    helpers=(Fp8Linear32, SwiGluQuantTensor, SwiGlu32, QuantizeByScale),
    outputs=lambda codes, scale, weight, weight_scale, hidden_scale, *, promotion: swiglu_quant_tensor.outputs(
        *fp8_linear.outputs(codes, scale, weight, weight_scale, promotion=promotion), hidden_scale
    ),
    threshold=FP8_THRESHOLD,
)
