"""From a serving module to an ONNX graph of `onerec` nodes with readable names; weights stay where they are in memory."""

from __future__ import annotations

import copy
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

# Operators that the exporter translates to the same nodes with and without decomposing them; it drops the last two.
_ATEN = """
    add.Tensor arange cat embedding expand gather lt.Scalar select.int slice.Tensor split.Tensor stack sum.dim_IntList sym_size.int
    to.dtype view where.ScalarSelf zeros_like _assert_scalar _assert_tensor_metadata
"""
_AS_THEY_ARE = {"onnx_symbolic::_symbolic_multi_out", *(f"aten::{name}" for name in _ATEN.split())}


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
    with torch.no_grad(), recorded_calls() as calls, _quiet_exporter(), _traced_once(), _translations_gathered_once():
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
    """Have the exporter take a trace as it is where that gives the same graph.

    It traces the trace again, to decompose operators and to replace those that write to their inputs. That is half of the time of an
    export, and changes nothing where a module calls operators of `onerec` and of `_AS_THEY_ARE` alone.
    """
    program = torch.export.ExportedProgram
    decompose = program.run_decompositions

    def as_it_is(traced: torch.export.ExportedProgram, *table: Any) -> torch.export.ExportedProgram:
        called = {node.target.name() for node in traced.graph.nodes if isinstance(node.target, torch._ops.OpOverload)}
        return traced if called <= _AS_THEY_ARE else decompose(traced, *table)

    program.run_decompositions = as_it_is  # type: ignore[method-assign]
    try:
        yield
    finally:
        program.run_decompositions = decompose  # type: ignore[method-assign]


@contextmanager
def _translations_gathered_once() -> Iterator[None]:
    """Have the exporter gather its translations of operators once for all graphs: it reads hundreds of functions, 0.6 s at each export.

    The table is private. A PyTorch that keeps it elsewhere gathers it for every graph, with the same result.
    """
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    gather = ONNXRegistry.from_torchlib

    def translations(opset_version: int) -> ONNXRegistry:
        if opset_version not in _gathered:
            _gathered[opset_version] = gather(opset_version=opset_version)
        registry: ONNXRegistry = copy.copy(_gathered[opset_version])  # a copy, since the exporter adds our own to what it is given
        registry.functions = {operator: list(found) for operator, found in registry.functions.items()}
        return registry

    ONNXRegistry.from_torchlib = staticmethod(translations)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        ONNXRegistry.from_torchlib = gather  # type: ignore[method-assign]


_gathered: dict[int, Any] = {}  # tables of translations, by opset
