"""BeamSelfAttention{1,2}Quant{Row,Tensor}: beam self-attention and the E4M3 quantization of its FP16 result, as one operator.

Fused operators: no exported file holds them; a build with plugins puts them in the place of their parts. References and functions
call those of the parts, so the result is rounded to FP16 before it is quantized, as it is between the parts.
"""

from __future__ import annotations

from onnxscript import script
from torch import Tensor

from .beam_self_attention import (
    BeamSelfAttention1,
    BeamSelfAttention2,
    HeadScore,
    SplitHeads,
    beam_self_attention_1,
    beam_self_attention_2,
    one_before_reference,
    two_before_reference,
)
from .comparison import compare_codes
from .functions import QuantizeByScale, QuantizeRows
from .operator import FP8_THRESHOLD, ONEREC, Operator, op
from .quant import QuantRow, QuantTensor, quant_row, quant_tensor, row_reference, tensor_reference


def one_before_row_reference(qkv_N3D: Tensor, bos_B3D: Tensor, *, rows: int, heads: int) -> tuple[Tensor, Tensor]:
    """E4M3 codes [B * rows, D] and FP32 scales [B * rows, 1]."""
    return row_reference(*one_before_reference(qkv_N3D, bos_B3D, rows=rows, heads=heads))


def two_before_row_reference(
    qkv_N3D: Tensor, bos_B3D: Tensor, first_M3D: Tensor, parent_BR: Tensor, *, rows: int, heads: int
) -> tuple[Tensor, Tensor]:
    """Like above; inputs as those of BeamSelfAttention2."""
    return row_reference(*two_before_reference(qkv_N3D, bos_B3D, first_M3D, parent_BR, rows=rows, heads=heads))


def one_before_tensor_reference(qkv_N3D: Tensor, bos_B3D: Tensor, scale: Tensor, *, rows: int, heads: int) -> tuple[Tensor]:
    """E4M3 codes [B * rows, D] for one scale [1]."""
    return tensor_reference(*one_before_reference(qkv_N3D, bos_B3D, rows=rows, heads=heads), scale)


def two_before_tensor_reference(
    qkv_N3D: Tensor, bos_B3D: Tensor, first_M3D: Tensor, parent_BR: Tensor, scale: Tensor, *, rows: int, heads: int
) -> tuple[Tensor]:
    """Like above; inputs as those of BeamSelfAttention2."""
    return tensor_reference(*two_before_reference(qkv_N3D, bos_B3D, first_M3D, parent_BR, rows=rows, heads=heads), scale)


@script(ONEREC, default_opset=op)
def BeamSelfAttention1QuantRow(qkv, bos, rows: int, heads: int):
    codes, scale = QuantRow(BeamSelfAttention1(qkv, bos, rows=rows, heads=heads))
    return codes, scale


@script(ONEREC, default_opset=op)
def BeamSelfAttention2QuantRow(qkv, bos, first, parent, rows: int, heads: int):
    codes, scale = QuantRow(BeamSelfAttention2(qkv, bos, first, parent, rows=rows, heads=heads))
    return codes, scale


@script(ONEREC, default_opset=op)
def BeamSelfAttention1QuantTensor(qkv, bos, scale, rows: int, heads: int):
    return QuantTensor(BeamSelfAttention1(qkv, bos, rows=rows, heads=heads), scale)


@script(ONEREC, default_opset=op)
def BeamSelfAttention2QuantTensor(qkv, bos, first, parent, scale, rows: int, heads: int):
    return QuantTensor(BeamSelfAttention2(qkv, bos, first, parent, rows=rows, heads=heads), scale)


beam_self_attention_1_quant_row = Operator(
    name="BeamSelfAttention1QuantRow",
    reference=one_before_row_reference,
    function=BeamSelfAttention1QuantRow,
    helpers=(BeamSelfAttention1, SplitHeads, HeadScore, QuantRow, QuantizeByScale, QuantizeRows),
    outputs=lambda qkv, bos, *, rows, heads: quant_row.outputs(*beam_self_attention_1.outputs(qkv, bos, rows=rows, heads=heads)),
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
beam_self_attention_2_quant_row = Operator(
    name="BeamSelfAttention2QuantRow",
    reference=two_before_row_reference,
    function=BeamSelfAttention2QuantRow,
    helpers=(BeamSelfAttention2, SplitHeads, HeadScore, QuantRow, QuantizeByScale, QuantizeRows),
    outputs=lambda qkv, bos, first, parent, *, rows, heads: quant_row.outputs(
        *beam_self_attention_2.outputs(qkv, bos, first, parent, rows=rows, heads=heads)
    ),
    threshold=FP8_THRESHOLD,
    compare=compare_codes,
)
beam_self_attention_1_quant_tensor = Operator(
    name="BeamSelfAttention1QuantTensor",
    reference=one_before_tensor_reference,
    function=BeamSelfAttention1QuantTensor,
    helpers=(BeamSelfAttention1, SplitHeads, HeadScore, QuantTensor, QuantizeByScale),
    outputs=lambda qkv, bos, scale, *, rows, heads: quant_tensor.outputs(
        *beam_self_attention_1.outputs(qkv, bos, rows=rows, heads=heads), scale
    ),
    threshold=FP8_THRESHOLD,
)
beam_self_attention_2_quant_tensor = Operator(
    name="BeamSelfAttention2QuantTensor",
    reference=two_before_tensor_reference,
    function=BeamSelfAttention2QuantTensor,
    helpers=(BeamSelfAttention2, SplitHeads, HeadScore, QuantTensor, QuantizeByScale),
    outputs=lambda qkv, bos, first, parent, scale, *, rows, heads: quant_tensor.outputs(
        *beam_self_attention_2.outputs(qkv, bos, first, parent, rows=rows, heads=heads), scale
    ),
    threshold=FP8_THRESHOLD,
)
