"""Reads the quantized checkpoint that the calibration stage wrote, and checks it against its record and its own description."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.artifacts import read_json
from ..core.dtypes import FROM_SAFETENSORS
from ..core.errors import CheckpointError
from ..core.precision import Granularity, Precision, precision_of
from ..core.records import read_record
from ..models.checkpoint import INDEX_NAME, expected_shapes
from ..models.config import OneRecConfig, parse_config
from ..models.layout import layout
from .summary import QuantizationSummary, read_summary
from .targets import Target, quantized_targets

_AGAIN = "run the stage 'calibrate' again"
_Form = tuple[tuple[int, ...], torch.dtype]


@dataclass
class QuantizedCheckpoint:
    """An opened quantized checkpoint.

    Args:
        folder: The calibration stage's folder.
        config: The model.
        summary: quantization.json.
        names: Every stored tensor: the model's own names, and `<linear>.weight_scale`, `<linear>.input_scale`.
        settings: The quantized linears, with kind, group, shape and granularity.
    """

    folder: Path
    config: OneRecConfig
    summary: QuantizationSummary
    names: tuple[str, ...]
    settings: list[Target]
    _weight_map: dict[str, str]
    _open: dict[str, Any] = field(default_factory=dict)

    @property
    def precision(self) -> str:
        return self.summary.precision

    @property
    def scheme(self) -> Precision:
        return precision_of(self.summary.precision, self.summary.keep_fp16)

    def tensor(self, name: str) -> Tensor:
        """One tensor as stored (E4M3, FP16 or FP32), read from disk now."""
        tensor: Tensor = self._handle(name).get_tensor(name)
        return tensor

    def form(self, name: str) -> _Form:
        """Shape and dtype of one tensor, without reading it."""
        part = self._handle(name).get_slice(name)
        known = FROM_SAFETENSORS.get(part.get_dtype())
        return tuple(part.get_shape()), torch.uint8 if known is None else known.torch

    def _handle(self, name: str) -> Any:
        file = self._weight_map[name]
        if file not in self._open:
            try:
                self._open[file] = safe_open(self.folder / file, framework="pt")
            except (SafetensorError, OSError) as error:
                raise CheckpointError(f"not a readable safetensors file: {error}", where=str(self.folder / file), hint=_AGAIN) from None
        return self._open[file]


def open_quantized(folder: Path) -> QuantizedCheckpoint:
    """Open a quantized checkpoint; weights are read later, one by one, scales are read and checked now.

    Raises:
        ArtifactError: A file is missing or does not match the record.
        CheckpointError: A tensor is missing, unexpected or of another shape or type, or a scale is NaN, infinite or not positive.
    """
    read_record(folder)
    config = parse_config(read_json(folder / "config.json"), where=str(folder / "config.json"))
    summary = read_summary(folder)
    settings = quantized_targets(config, summary.precision, summary.keep_fp16)
    weight_map = read_json(folder / INDEX_NAME)["weight_map"]
    checkpoint = QuantizedCheckpoint(folder, config, summary, tuple(weight_map), settings, weight_map)
    _check_layers(checkpoint)
    _check_forms(checkpoint)
    _check_scales(checkpoint)
    return checkpoint


def stored_forms(config: OneRecConfig, targets: list[Target]) -> dict[str, _Form]:
    """Shape and dtype of every tensor that a quantized checkpoint of this model holds."""
    fp32 = layout(config).fp32
    forms: dict[str, _Form] = {
        name: (shape, torch.float32 if name in fp32 else torch.float16) for name, shape in expected_shapes(config).items()
    }
    for target in targets:
        forms[f"{target.name}.weight"] = (target.stored_shape, torch.float8_e4m3fn)
        forms[f"{target.name}.weight_scale"] = (target.weight_scale_shape, torch.float32)
        if target.granularity is Granularity.TENSOR:
            forms[f"{target.name}.input_scale"] = ((), torch.float32)
    return forms


def _check_layers(checkpoint: QuantizedCheckpoint) -> None:
    listed = {(layer.name, layer.kind, layer.granularity) for layer in checkpoint.summary.layers}
    if listed != {(target.name, target.kind, target.granularity) for target in checkpoint.settings}:
        what = f"quantization.json lists other layers than {checkpoint.precision} quantizes"
        raise CheckpointError(what, where=str(checkpoint.folder), hint=_AGAIN)


def _check_forms(checkpoint: QuantizedCheckpoint) -> None:
    expected = stored_forms(checkpoint.config, checkpoint.settings)
    for name in sorted(expected.keys() ^ set(checkpoint.names)):
        problem = "missing" if name in expected else "not part of the model"
        raise CheckpointError(f"the tensor {name} is {problem}", where=str(checkpoint.folder), hint=_AGAIN)
    for name, form in expected.items():
        if checkpoint.form(name) != form:
            what = f"the tensor {name} is {checkpoint.form(name)}, not {form}"
            raise CheckpointError(what, where=str(checkpoint.folder), hint=_AGAIN)


def _check_scales(checkpoint: QuantizedCheckpoint) -> None:
    for name in checkpoint.names:
        if name.endswith((".weight_scale", ".input_scale")):
            scale = checkpoint.tensor(name)
            if not bool((scale.isfinite() & (scale > 0)).all()):
                raise CheckpointError(f"the scale {name} is NaN, infinite or not positive", where=str(checkpoint.folder), hint=_AGAIN)
