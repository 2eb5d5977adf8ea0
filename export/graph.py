"""From a serving module to an ONNX graph of `onerec` nodes with readable names; weights stay where they are in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..core.errors import ExportError
from ..operators.operator import OPSET, recorded_calls
from .passes import name_operator_nodes, simplify

BATCH, CONTEXT = "batch", "context"


@dataclass(frozen=True)
class GraphSpec:
    """Inputs by name with their dynamic axes, and output names, of one form of the graph."""

    inputs: Mapping[str, Mapping[int, str]]
    outputs: Sequence[str]


SERVING = GraphSpec({"features": {0: BATCH, 1: CONTEXT}, "lengths": {0: BATCH}}, ["sids", "scores"])
SCORING = GraphSpec({"features": {0: BATCH, 1: CONTEXT}, "lengths": {0: BATCH}, "sids": {0: BATCH}}, ["log_probabilities"])


def export_graph(module: nn.Module, spec: GraphSpec, example: Sequence[Tensor]) -> ir.Model:
    """Trace the module into an ONNX graph, simplified and with its operator nodes named by their place in the model.

    Raises:
        ExportError: The exporter refused the module.
    """
    dynamic = {name: {axis: torch.export.Dim(dim) for axis, dim in axes.items()} for name, axes in spec.inputs.items()}
    with torch.no_grad(), recorded_calls() as calls, _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                tuple(example),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=list(spec.inputs),
                output_names=list(spec.outputs),
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the ONNX exporter refused the graph: {error}", hint="check the torch and onnxscript versions") from error
    assert program is not None
    model: ir.Model = program.model
    simplify(model)
    name_operator_nodes(model, [(call.operator.name, call.label) for call in calls])
    return model


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter says about torchvision and about axis names it already uses."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
