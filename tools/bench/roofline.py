"""The physical limit of one request batch: what no implementation on a given GPU can beat.

Per decode step and group of operators the slowest of arithmetic, memory and exponentials; groups follow each other.
Context processor, norms, routing and top-k are left out: it stays a bound from below.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ...export.serving import effective_widths
from ...models.config import MoeConfig, OneRecConfig
from ...models.layout import layout

Bits = Literal[8, 16]


@dataclass(frozen=True)
class Gpu:
    """Peak rates of a GPU per second: dense FLOP in FP8 and in FP16, bytes of its memory, exponentials."""

    name: str
    fp8_flops: float
    fp16_flops: float
    bytes_per_second: float
    exponentials: float

    def flops(self, bits: Bits) -> float:
        return self.fp8_flops if bits == 8 else self.fp16_flops


# NVIDIA's data sheets of H200 and H100 SXM: tensor cores without sparsity, HBM3e and HBM3. Exponentials: 16 per clock and
# multiprocessor, 132 of them at 1.83 GHz, which is the 3.9 T/s that arXiv 2407.08608 (FlashAttention-3) counts with.
H200 = Gpu("NVIDIA H200", fp8_flops=1979e12, fp16_flops=989e12, bytes_per_second=4.8e12, exponentials=3.9e12)
H100 = Gpu("NVIDIA H100", fp8_flops=1979e12, fp16_flops=989e12, bytes_per_second=3.35e12, exponentials=3.9e12)
_SXM = ("NVIDIA H200", "NVIDIA H100 80GB HBM3")  # as their drivers name them; NVL, PCIe and MIG have other names and other rates


def gpu_of(name: str) -> Gpu:
    """The peak rates of a card by the name that its driver gives; of an unknown one those of the SXM card in its name, else of an H200."""
    return next((gpu for gpu in (H100, H200) if gpu.name in name), H200)


def stand_in(name: str) -> str:
    """Whose peak rates are used for a card, and why. Empty: the card's own."""
    return "" if name in _SXM else f"{gpu_of(name).name} SXM, as the peak rates of {name} are not known"


@dataclass(frozen=True)
class Work:
    """What one group of operators must at least do in one step; all of it in numbers of `bits` bits."""

    group: Literal["linears and heads", "experts", "attention"]
    step: int
    flops: float
    bytes: float
    exponentials: float
    bits: Bits

    def seconds(self, gpu: Gpu) -> float:
        return max(self.flops / gpu.flops(self.bits), self.bytes / gpu.bytes_per_second, self.exponentials / gpu.exponentials)


def limit_ms(
    config: OneRecConfig,
    batch: int,
    beam: Sequence[int],
    context: int,
    *,
    linears: Bits,
    attention_and_heads: Bits,
    gpu: Gpu = H200,
) -> float:
    """Milliseconds no execution of one batch can go below.

    Args:
        config: The model.
        batch: Requests.
        beam: Beams kept after each of the three steps.
        context: Tokens of every request's context.
        linears: Bits of the projections, FFN and experts.
        attention_and_heads: Bits of the attention over the context and of the heads.
        gpu: Default: H200.
    """
    works = work(config, batch, beam, context, linears=linears, attention_and_heads=attention_and_heads)
    return sum(part.seconds(gpu) for part in works) * 1e3


def work(
    config: OneRecConfig, batch: int, beam: Sequence[int], context: int, *, linears: Bits, attention_and_heads: Bits
) -> Iterator[Work]:
    """The work of each step: its rows are the beams kept after the step before."""
    widths = effective_widths(beam, config.codebook)
    for step, width in enumerate([1, *widths[:-1]]):
        rows = batch * width
        yield from _linears_and_heads(config, step, rows, linears, attention_and_heads)
        if config.moe is not None:
            yield _experts(config, config.moe, step, rows, linears)
        yield _attention(config, step, batch, rows, context, attention_and_heads)


def _linears_and_heads(config: OneRecConfig, step: int, rows: int, linears: Bits, heads: Bits) -> Iterator[Work]:
    """Every row passes through every weight but routed experts' once, and every weight is read once: 2 FLOP per row and weight."""
    here = [linear for linear in layout(config).linears if step in linear.steps]
    dense = sum(linear.parameters for linear in here if linear.scheme is not None and not linear.routed)
    head = sum(linear.parameters for linear in here if linear.kind == "head")
    for weights, bits in ((dense, linears), (head, heads)):
        yield Work("linears and heads", step, 2 * rows * weights, weights * bits / 8, 0, bits)


def _experts(config: OneRecConfig, moe: MoeConfig, step: int, rows: int, bits: Bits) -> Work:
    """Each row computes `top_k` experts; read are those that any row selects, were rows to select evenly."""
    weights = sum(linear.parameters for linear in layout(config).linears if linear.routed and step in linear.steps)
    share = moe.top_k / moe.experts
    touched = 1 - (1 - share) ** rows
    return Work("experts", step, 2 * rows * share * weights, touched * weights * bits / 8, 0, bits)


def _attention(config: OneRecConfig, step: int, batch: int, rows: int, context: int, bits: Bits) -> Work:
    """Scores and weighted sum over the context; every layer reads its keys, and its values where they are not the keys."""
    scores = rows * config.n_layers * context * config.n_heads
    read = batch * context * config.d_kv * config.s_kv * config.n_layers * bits / 8
    return Work("attention", step, 4 * scores * config.d_head, read, scores, bits)
