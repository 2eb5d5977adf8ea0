"""Linear and LinearAdd: FP16 matrix multiplication with FP32 accumulation, the second with a residual."""

from __future__ import annotations

import torch
from onnxscript import script
from torch import Tensor

from .functions import Product
from .operator import ONEREC, Operator, Spec, op


def linear_reference(x_NK: Tensor, weight_MK: Tensor) -> tuple[Tensor]:
    return ((x_NK.float() @ weight_MK.float().T).half(),)


def linear_add_reference(x_NK: Tensor, weight_MK: Tensor, residual_NM: Tensor) -> tuple[Tensor]:
    return ((x_NK.float() @ weight_MK.float().T + residual_NM.float()).half(),)


@script(ONEREC, default_opset=op)
def Linear(x, weight):
    return Product(x, op.Transpose(weight, perm=[1, 0]))


@script(ONEREC, default_opset=op)
def LinearAdd(x, weight, residual):
    product = Product(x, op.Transpose(weight, perm=[1, 0]))
    return op.Cast(op.Add(op.Cast(product, to=1), op.Cast(residual, to=1)), to=10)


linear = Operator(
    name="Linear",
    reference=linear_reference,
    function=Linear,
    helpers=(Product,),
    outputs=lambda x, weight: (Spec(torch.float16, (*x.shape[:-1], weight.shape[0])),),
)
linear_add = Operator(
    name="LinearAdd",
    reference=linear_add_reference,
    function=LinearAdd,
    helpers=(Product,),
    outputs=lambda x, weight, residual: (Spec(torch.float16, tuple(residual.shape)),),
)
