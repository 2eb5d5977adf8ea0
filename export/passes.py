"""Named rewrite passes over the exported graph. Each does one thing and leaves what the graph computes as it was."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
import onnxscript.optimizer
import onnxscript.rewriter
from onnx_ir.passes import common

from ..operators.operator import DETAIL, DOMAIN
from ..operators.registry import OPERATORS, functions_of

LARGEST_FOLDED = 64  # elements: shapes and axes are folded, rows of weight tables keep their name and their place


def simplify(model: ir.Model) -> None:
    """Fold constants, drop what is unused, merge common subexpressions.

    The exporter's own optimizer also merges equal initializers, so that a weight's name would depend
    on its content; this leaves them apart.
    """
    onnxscript.optimizer.fold_constants(model, input_size_limit=LARGEST_FOLDED)
    rewritten = onnxscript.rewriter.rewrite(model)
    assert rewritten is model
    for step in (
        common.RemoveUnusedNodesPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.CommonSubexpressionEliminationPass(),
        common.IdentityEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.ClearMetadataAndDocStringPass(),
        common.NameFixPass(),
    ):
        step(model)


def name_operator_nodes(model: ir.Model, calls: Sequence[tuple[str, str]]) -> None:
    """Name every operator node, and its outputs, by its place in the model: `step1.blocks.0.cross.q`.

    `calls` are operator names and labels in the order in which they were traced, which is the
    graph's order.
    """
    nodes = [node for node in model.graph if node.domain == DOMAIN]
    assert [node.op_type for node in nodes] == [name for name, _ in calls], "a pass removed or moved an operator node"
    kept = {output.name for output in model.graph.outputs}
    for node, (_, label) in zip(nodes, calls, strict=True):
        node.name = label
        for number, output in enumerate(node.outputs):
            if output.name not in kept:
                output.name = f"{label}.{number}"


def attach_functions(model: ir.Model) -> None:
    """Put the function of every operator used into the file, as a model-local function."""
    used = sorted({node.op_type for node in model.graph if node.domain == DOMAIN})
    for proto in functions_of(OPERATORS[name] for name in used):
        function = ir.from_proto(proto)
        model.functions[function.identifier()] = function
    model.opset_imports[DETAIL.domain] = DETAIL.version
