"""RmsNorm: root-mean-square norm over the last axis, computed in FP32, rounded to FP16 once."""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .functions import NormInFp32
from .operator import ONEREC, Operator, Spec, op


def norm_in_fp32(x: Tensor, weight: Tensor, epsilon: float) -> Tensor:
    """x / sqrt(mean(x^2) + epsilon) * weight, FP32."""
    wide = x.float()
    return wide / (wide.square().mean(-1, keepdim=True) + epsilon).sqrt() * weight.float()


def rms_norm_reference(x_ND: Tensor, weight_D: Tensor, *, epsilon: float) -> tuple[Tensor]:
    return (norm_in_fp32(x_ND, weight_D, epsilon).half(),)


@script(ONEREC, default_opset=op)
def RmsNorm(x, weight, epsilon: float):
    return op.Cast(NormInFp32(x, weight, epsilon=epsilon), to=10)


rms_norm = Operator(
    name="RmsNorm",
    reference=rms_norm_reference,
    function=RmsNorm,
    helpers=(NormInFp32,),
    outputs=lambda x, weight, *, epsilon: (Spec(torch.float16, tuple(x.shape)),),
)
