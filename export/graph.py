"""From a serving module to an ONNX graph of `onerec` nodes with readable names; weights stay where they are in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir
import torch
from torch import Tensor, nn

from ..core.errors import ExportError
from ..core.graph_io import METADATA_KEY, GraphIO
from ..operators.operator import OPSET, recorded_calls
from .passes import name_operator_nodes, simplify


def export_graph(module: nn.Module, io: GraphIO, example: Sequence[Tensor]) -> ir.Model:
    """Trace the module into an ONNX graph, simplified and with its operator nodes named by their place in the model.

    Args:
        module: Takes the inputs of the contract in their order.
        io: The contract; the file carries it in its metadata.
        example: One tensor for each input.

    Raises:
        ExportError: The exporter refused the module.
    """
    dynamic = {t.name: {place: torch.export.Dim(axis) for place, axis in enumerate(t.axes) if isinstance(axis, str)} for t in io.inputs}
    with torch.no_grad(), recorded_calls() as calls, _quiet_exporter():
        try:
            program = torch.onnx.export(
                module,
                tuple(example),
                dynamo=True,
                opset_version=OPSET,
                dynamic_shapes=dynamic,
                input_names=[tensor.name for tensor in io.inputs],
                output_names=[tensor.name for tensor in io.outputs],
                optimize=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the ONNX exporter refused the graph: {error}", hint="check the torch and onnxscript versions") from error
    assert program is not None
    model: ir.Model = program.model
    model.metadata_props[METADATA_KEY] = io.model_dump_json()
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
