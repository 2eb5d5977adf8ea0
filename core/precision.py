"""The precisions a recipe can ask for, as data: what is quantized, and how finely.

Source: arXiv 2603.11486, section on FP8 post-training quantization; `fp8-static` is ModelOpt's default.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

E4M3_MAX = 448.0
AMAX_FLOOR = 1e-12  # a row of zeros gets this amax, so that no division by zero happens
BLOCK = 128  # channels that share a scale along K, and output channels that share one along N
FP16_MAX = 65504.0
FP16_WARN = 6.5e3  # an AbsMax above it is reported: less than a factor of ten below the end of FP16
FP16_REFUSE = 6.5e4  # an AbsMax above it is refused


class Granularity(StrEnum):
    """How many values of an activation share one FP8 scale."""

    NONE = "none"  # FP16, not quantized
    TENSOR = "tensor"  # one calibrated constant; weights per output channel
    ROW = "row"  # one per token, computed while serving; weights per output channel
    BLOCK = "block"  # one per token and 128 channels; weights per 128 x 128 block
    ROW_BLOCK = "row-block"  # one per token and 128 channels; weights per output channel
    BOUND = "bound"  # one constant that no value exceeds, from the model's weights alone; weights per output channel


@dataclass(frozen=True)
class Precision:
    """Granularity of the kinds of quantized matrix multiplication.

    Attributes:
        linears: Of attention and dense FFN.
        experts: Of the gate and up products of experts.
        expert_down: Of their down product. Default: as the others of experts.
        context_o: Of the o product behind the attention to the context, in the exported graphs. Default: as the other linears.
            Quantized checkpoints do not know it: they hold no scale for it either way.
        fp8_attention: Whether both products of attention to the context are in FP8, too, in the exported graphs, but for blocks where
            `keep_fp16` names it. Quantized checkpoints do not know it either: their scales come from the norms' weights and while serving.
            Default: they are in FP16.
        keep_fp16: Patterns of layers that stay in FP16 all the same; `models/layout.py` says what they match. Default: none.
    """

    linears: Granularity
    experts: Granularity
    expert_down: Granularity | None = None
    context_o: Granularity | None = None
    fp8_attention: bool = False
    keep_fp16: tuple[str, ...] = ()

    @property
    def attended(self) -> Granularity:
        """Of the result of attention to the context, which its o product reads."""
        return self.linears if self.context_o is None else self.context_o

    @property
    def hidden(self) -> Granularity:
        """Of the experts' hidden activations, which their down product reads."""
        return self.experts if self.expert_down is None else self.expert_down

    @property
    def is_quantized(self) -> bool:
        return self.linears is not Granularity.NONE

    @property
    def needs_activation_amax(self) -> bool:
        return Granularity.TENSOR in (self.linears, self.experts)


PRECISIONS = {
    "fp16": Precision(Granularity.NONE, Granularity.NONE),
    "fp8-static": Precision(Granularity.TENSOR, Granularity.TENSOR),
    "fp8-row": Precision(Granularity.ROW, Granularity.ROW),
    "fp8-paper": Precision(Granularity.ROW, Granularity.BLOCK),
    "fp8-paper-attention": Precision(Granularity.ROW, Granularity.BLOCK, fp8_attention=True),
    "fp8-row-block": Precision(Granularity.ROW, Granularity.ROW, Granularity.ROW_BLOCK, Granularity.BOUND),
}


def precision_of(name: str, keep_fp16: Iterable[str] = ()) -> Precision:
    """The precision of a name, but for layers that stay in FP16: a mixed one."""
    return replace(PRECISIONS[name], keep_fp16=tuple(keep_fp16))
