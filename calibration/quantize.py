"""Turns FP32 weights and amax into E4M3 codes and FP32 scales, one block of the model at a time: a 4B model needs little memory.

Stored for a quantized linear NAME: `NAME.weight` E4M3 [N, K] (K zero-padded to 128 for blocks), `NAME.weight_scale`
FP32 [N] or [N / 128, K / 128] rounded up, and with static activations `NAME.input_scale` FP32, no axes.
Everything else is FP16, except what the layout keeps in FP32: router weights and selection biases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors.torch import save_file
from torch import Tensor

from ..core.artifacts import write_json
from ..core.errors import CheckpointError
from ..core.precision import Granularity
from ..core.progress import tracked
from ..core.threads import ahead
from ..models.checkpoint import INDEX_NAME
from ..models.config import OneRecConfig
from ..models.layout import layout
from ..operators import fp8
from .statistics import check_fp16_range
from .targets import Target


class TensorSource(Protocol):
    """Where FP32 tensors come from, one at a time: a checkpoint, or a generator of random weights."""

    @property
    def config(self) -> OneRecConfig: ...

    @property
    def names(self) -> Iterable[str]: ...

    def tensor(self, name: str) -> Tensor: ...


@dataclass(frozen=True)
class Amax:
    """The amax of one linear: of its weight [N] for row scales or [N / 128, K / 128] for blocks, and of its static input."""

    weight: Tensor
    input: float | None = None

    def on(self, device: torch.device) -> Amax:
        return Amax(self.weight.to(device), self.input)


@dataclass(frozen=True)
class QuantizedWeight:
    """A quantized weight as stored: codes E4M3 and scales FP32; shapes as at the top of this module."""

    codes: Tensor
    scale: Tensor
    shape: tuple[int, int]

    def dequantized(self) -> Tensor:
        """The values [N, K] the codes stand for, FP32."""
        if self.scale.ndim == 1:
            return self.codes.float() * self.scale[:, None]
        rows, inputs = self.shape
        return fp8.dequantize_row_blocks(self.codes, fp8.expand_block_scale(self.scale, rows))[:, :inputs]


AmaxOf = Callable[[Target, Tensor], Amax]
OnWeight = Callable[[str, Tensor, QuantizedWeight | None], None]


def weight_amax(weight_NK: Tensor, granularity: Granularity) -> Tensor:
    """AbsMax of a weight per output channel [N], or per block [N / 128, K / 128] rounded up."""
    assert granularity is not Granularity.NONE
    return fp8.weight_block_amax(weight_NK) if granularity is Granularity.BLOCK else weight_NK.float().abs().amax(1)


def quantize_weight(weight_NK: Tensor, granularity: Granularity, amax: Tensor) -> QuantizedWeight:
    """Quantize one weight with given amax values."""
    scale = fp8.scale_of(amax)
    shape = (weight_NK.shape[0], weight_NK.shape[1])
    if granularity is Granularity.BLOCK:
        return QuantizedWeight(fp8.quantize_weight_blocks(weight_NK, scale), scale, shape)
    return QuantizedWeight(fp8.quantize_tensor(weight_NK, scale[:, None]), scale, shape)


def quantize(source: TensorSource, targets: Sequence[Target], amax_of: AmaxOf, folder: Path, on_weight: OnWeight) -> list[str]:
    """Write the quantized checkpoint: one safetensors shard per block and one for the rest, the index, config.json.

    Args:
        source: FP32 tensors in the model's own names.
        targets: Linears to quantize.
        amax_of: Gives the amax of a target, which may be taken from the weight it is handed.
        folder: Where the files go.
        on_weight: Called with the name, the FP32 value and the quantized form (None: FP16) of every tensor written.

    Returns:
        Warnings about values close to the end of FP16.

    Raises:
        CheckpointError: A tensor holds NaN or infinity.
        CalibrationError: FP16 cannot hold a tensor.
    """
    by_name = {f"{target.name}.weight": target for target in targets}
    shards, fp32 = layout(source.config).shards(source.names), layout(source.config).fp32
    weight_map: dict[str, str] = {}
    warnings: list[str] = []
    total = 0

    def read(name: str) -> tuple[Tensor, list[str], QuantizedWeight | None, dict[str, Tensor]]:
        tensor = source.tensor(name)
        found = _check_values(name, tensor, in_fp32=name in fp32)
        return tensor, found, *stored_tensors(name, tensor, name in fp32, by_name.get(name), amax_of)

    for number, names in tracked(list(enumerate(shards, 1)), "quantizing"):
        tensors: dict[str, Tensor] = {}
        for name, (tensor, found, quantized, parts) in zip(names, ahead(read, names), strict=True):
            warnings += found
            on_weight(name, tensor, quantized)
            tensors |= {stored: value.cpu() for stored, value in parts.items()}
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(tensors, file)
        total += sum(tensor.nbytes for tensor in tensors.values())
    write_json(folder / INDEX_NAME, {"metadata": {"total_size": total}, "weight_map": weight_map})
    write_json(folder / "config.json", source.config.model_dump(mode="json"))
    return warnings


def share_input_amax(targets: Sequence[Target], amax: Mapping[str, Amax]) -> dict[str, Amax]:
    """Linears that read the same tensor get the same static scale: the largest amax among them."""
    largest: dict[str, float] = {}
    for target in targets:
        value = amax[target.name].input
        if value is not None:
            largest[target.group] = max(value, largest.get(target.group, 0.0))
    return {target.name: Amax(amax[target.name].weight, largest.get(target.group)) for target in targets}


def _check_values(name: str, tensor: Tensor, *, in_fp32: bool) -> list[str]:
    absmax = float(tensor.abs().max()) if tensor.numel() else 0.0
    if absmax != absmax or absmax == float("inf"):
        raise CheckpointError("the tensor holds NaN or infinity", where=name, hint="take an earlier checkpoint")
    warning = None if in_fp32 else check_fp16_range(name, absmax)
    return [warning] if warning else []


def stored_tensors(
    name: str, tensor: Tensor, in_fp32: bool, target: Target | None, amax_of: AmaxOf
) -> tuple[QuantizedWeight | None, dict[str, Tensor]]:
    """The quantized form of one weight (None: FP16 or FP32), and by name every tensor that is stored for it."""
    if target is None:
        dtype = torch.float32 if in_fp32 else torch.float16
        return None, {name: tensor.to(dtype).contiguous()}
    amax = amax_of(target, tensor)
    quantized = quantize_weight(tensor, target.granularity, amax.weight)
    parts = {name: quantized.codes.contiguous(), f"{name}_scale": quantized.scale.contiguous()}
    if target.granularity is Granularity.TENSOR:
        assert amax.input is not None
        parts[f"{target.name}.input_scale"] = fp8.scale_of(torch.tensor(amax.input))
    return quantized, parts
