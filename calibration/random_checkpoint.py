"""Quantized checkpoints of random weights, for exports of full-size models: written block by block, no model in memory."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.precision import PRECISIONS
from ..core.recipe import PrecisionName
from ..core.records import Record
from ..core.sources import Sources
from ..core.stages import Stage, run_stage
from ..models.checkpoint import expected_shapes
from ..models.config import OneRecConfig
from ..models.layout import layout
from ..operators import fp8
from .quantize import Amax, quantize, weight_amax
from .summary import QuantizationSummary, summarize_layers, unquantized, write_summary
from .targets import Target, quantized_targets

SOURCES = Sources(("core", "models", "operators/fp8.py", "calibration"))
STANDARD_DEVIATION = 0.02  # the usual initialization of transformers


class RandomWeights:
    """Normal weights, norms of one, selection biases of zero; each tensor has its own seed, so any order gives the same."""

    def __init__(self, config: OneRecConfig, seed: int) -> None:
        self.config, self.seed = config, seed
        self._shapes = expected_shapes(config)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._shapes)

    def tensor(self, name: str) -> Tensor:
        shape = self._shapes[name]
        other = layout(self.config).others.get(name)
        if other == "selection bias":
            return torch.zeros(shape)
        if other == "norm":
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return torch.randn(shape, generator=generator).mul_(STANDARD_DEVIATION)


def random_quantized_checkpoint(
    config: OneRecConfig, precision: PrecisionName, folder: Path, seed: int, input_amax: Mapping[str, float] | None = None
) -> Record:
    """Write a quantized checkpoint of random weights into `folder`, replaced as a whole. Peak memory: two shards.

    Args:
        config: The model.
        precision: How it is quantized.
        folder: Where the files go.
        seed: Of the weights.
        input_amax: For static activation scales: AbsMax of the tensor each group of linears reads, by the group's name.

    Raises:
        CalibrationError: The precision has static activation scales, and a group's is not given.
    """
    amax = dict(input_amax or {})
    if PRECISIONS[precision].needs_activation_amax:
        missing = sorted({target.group for target in quantized_targets(config, precision)} - amax.keys())
        if missing:
            hint = "use fp16, fp8-row or fp8-paper, or calibrate a trained checkpoint"
            problem = f"{precision} needs calibrated activation scales; random weights have none for {len(missing)} groups of linears"
            raise CalibrationError(problem, where=str(folder), hint=hint)
    stage = Stage(
        name="random-checkpoint",
        folder=folder,
        sources=SOURCES,
        tools=("torch", "safetensors"),
        options={"config": config.model_dump(mode="json"), "precision": precision, "seed": seed, "input_amax": amax},
        body=partial(_write, config, precision, seed, amax),
    )
    return run_stage(stage)


def _write(config: OneRecConfig, precision: PrecisionName, seed: int, input_amax: Mapping[str, float], folder: Path) -> dict[str, object]:
    targets = quantized_targets(config, precision)

    def amax_of(target: Target, weight_NK: Tensor) -> Amax:
        return Amax(weight_amax(weight_NK, target.granularity), input_amax.get(target.group))

    quantize(RandomWeights(config, seed), targets, amax_of, folder, lambda *_: None)
    scales = {target.name: float(fp8.scale_of(torch.tensor(input_amax[target.group]))) for target in targets if target.group in input_amax}
    layers = summarize_layers(targets, scales)
    write_summary(folder, QuantizationSummary(precision=precision, layers=layers, unquantized=unquantized(config, targets)))
    return {"quantized_linears": len(targets)}
