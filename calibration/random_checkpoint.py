"""Quantised checkpoints of random weights, for exports of full-size models: written block by block, no model in memory."""

from __future__ import annotations

import zlib
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.precision import PRECISIONS
from ..core.recipe import PrecisionName
from ..core.records import Record, run_stage
from ..models.checkpoint import expected_shapes
from ..models.config import OneRecConfig
from .freeze import Amax, freeze, weight_amax
from .summary import QuantisationSummary, summarise_layers, unquantised, write_summary
from .targets import Target, quantised_targets

STANDARD_DEVIATION = 0.02  # the usual initialisation of transformers


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
        if name.endswith(".selection_bias"):
            return torch.zeros(shape)
        if "norm" in name:
            return torch.ones(shape)
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed}/{name}".encode()))
        return torch.randn(shape, generator=generator).mul_(STANDARD_DEVIATION)


def random_quantised_checkpoint(config: OneRecConfig, precision: PrecisionName, folder: Path, seed: int) -> Record:
    """Write a quantised checkpoint of random weights into `folder`, replaced as a whole. Peak memory: two shards.

    Raises:
        CalibrationError: The precision has static activation scales, which only calibration can give.
    """
    if PRECISIONS[precision].needs_activation_amax:
        hint = "use fp16, fp8-row or fp8-paper, or calibrate a trained checkpoint"
        raise CalibrationError(f"{precision} needs calibrated activation scales; random weights have none", where=str(folder), hint=hint)
    options = {"config": config.model_dump(mode="json"), "precision": precision, "seed": seed}
    body = partial(_write, config, precision, seed)
    return run_stage("random-checkpoint", folder, read={}, options=options, tools=("torch", "safetensors"), body=body)


def _write(config: OneRecConfig, precision: PrecisionName, seed: int, folder: Path) -> dict[str, object]:
    targets = quantised_targets(config, precision)

    def amax_of(target: Target, weight_NK: Tensor) -> Amax:
        return Amax(weight_amax(weight_NK, target.granularity))

    freeze(RandomWeights(config, seed), targets, amax_of, folder, lambda *_: None)
    write_summary(
        folder, QuantisationSummary(precision=precision, layers=summarise_layers(targets), unquantised=unquantised(config, targets))
    )
    return {"quantised_linears": len(targets)}
