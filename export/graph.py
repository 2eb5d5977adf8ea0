"""From a serving module to an ONNX graph of `onerec` nodes with readable names; weights stay where they are in memory."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import onnx_ir as ir
import torch
from onnxscript import opset18
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
    with torch.no_grad(), recorded_calls() as calls, _quiet_exporter(), _traced_once():
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
                custom_translation_table={torch.ops.aten.to.dtype: _cast},
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"the ONNX exporter refused the graph: {error}", hint="check the torch and onnxscript versions") from error
    assert program is not None
    model: ir.Model = program.model
    model.metadata_props[METADATA_KEY] = io.model_dump_json()
    simplify(model)
    name_operator_nodes(model, [(call.operator.name, call.label) for call in calls])
    return model


def _cast(x: Any, dtype: int) -> Any:
    """How ONNX spells `x.to(dtype)`, which the exporter knows in its decomposed form only; as there, of operator set 18."""
    return opset18.Cast(x, to=dtype)


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


@contextmanager
def _traced_once() -> Iterator[None]:
    """Have the exporter take a trace as it is.

    It would trace the trace again, to decompose operators and to replace those that write to their inputs. That is half of the time of an
    export, and a serving module needs neither: it calls the operators of `onerec`, and a few of PyTorch that ONNX has.
    """
    program = torch.export.ExportedProgram
    decompose = program.run_decompositions

    def as_it_is(traced: torch.export.ExportedProgram, _table: object = None) -> torch.export.ExportedProgram:
        schemas = [getattr(node.target, "_schema", None) for node in traced.graph.nodes]
        writing = [schema.name for schema in schemas if schema is not None and schema.is_mutable]
        assert not writing, f"operators write to their inputs: {', '.join(writing)}"
        return traced

    program.run_decompositions = as_it_is  # type: ignore[method-assign]
    try:
        yield
    finally:
        program.run_decompositions = decompose  # type: ignore[method-assign]
