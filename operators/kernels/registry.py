"""Every operator that has a kernel: how its launch program is made, and the layout in which the kernel wants its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..launch.node import Node
from ..launch.program import Program
from ..operator import Array
from .beam_self_attention import beam_self_attention_1_program, beam_self_attention_2_program
from .beam_step import beam_step_program
from .context_attention import context_attention_program
from .fp8_linear import fp8_linear_add_program, fp8_linear_program
from .linear import linear_add_program, linear_program
from .quant import quant_row_program, quant_tensor_program
from .rms_norm import rms_norm_program
from .rms_norm_quant import rms_norm_quant_block_program, rms_norm_quant_row_program, rms_norm_quant_tensor_program
from .swiglu import swiglu_program, swiglu_quant_row_program, swiglu_quant_tensor_program

Prepare = Callable[[Array], Array]


@dataclass(frozen=True)
class KernelFactory:
    """What the builder pass asks.

    Attributes:
        program: The launch program of a node; None: it has no kernel and is built natively. Outputs at the end that nobody
            reads may be left out of the program: so is the FP16 norm.
        prepare: By input, what turns an initializer into the layout the kernel wants. Inputs that are not named stay as they
            are: products read weights [N, K] as the checkpoint has them.
    """

    program: Callable[[Node], Program | None]
    prepare: Mapping[int, Prepare] = field(default_factory=dict)


FACTORIES: dict[str, KernelFactory] = {
    "RmsNorm": KernelFactory(rms_norm_program),
    "RmsNormQuantTensor": KernelFactory(rms_norm_quant_tensor_program),
    "RmsNormQuantRow": KernelFactory(rms_norm_quant_row_program),
    "RmsNormQuantBlock": KernelFactory(rms_norm_quant_block_program),
    "QuantTensor": KernelFactory(quant_tensor_program),
    "QuantRow": KernelFactory(quant_row_program),
    "SwiGlu": KernelFactory(swiglu_program),
    "SwiGluQuantTensor": KernelFactory(swiglu_quant_tensor_program),
    "SwiGluQuantRow": KernelFactory(swiglu_quant_row_program),
    "Linear": KernelFactory(linear_program),
    "LinearAdd": KernelFactory(linear_add_program),
    "Fp8Linear": KernelFactory(fp8_linear_program),
    "Fp8LinearAdd": KernelFactory(fp8_linear_add_program),
    "ContextAttention": KernelFactory(context_attention_program),
    "BeamSelfAttention1": KernelFactory(beam_self_attention_1_program),
    "BeamSelfAttention2": KernelFactory(beam_self_attention_2_program),
    "BeamStep": KernelFactory(beam_step_program),
}
