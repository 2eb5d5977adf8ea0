"""Gate 1, per operator: each operator of the exported file alone, fed with the packed model's own inputs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from threading import Lock

import numpy as np
import onnx
import torch
from polygraphy.comparator import CompareFunc, IterationResult
from pydantic import BaseModel

from ..core.arrays import Array
from ..core.difference import difference
from ..core.progress import tracked
from ..core.threads import usable_cores
from ..export.passes import LARGEST_FOLDED
from ..export.serving import ServingModel
from ..export.weights import WEIGHTS_FILE
from ..models.requests import Requests
from ..operators.operator import DOMAIN, Call, recorded_calls
from ..operators.single_node import as_arrays, feed, single_node_model
from ..runtime.item_index import ItemIndex
from ..runtime.onnxruntime_runner import OnnxRuntimeRunner
from .adversarial import adversarial_calls
from .fused_parity import fused_calls
from .gates import Gate, gate
from .requests_feed import feeds
from .single_step import threshold_of, without_single_step

_THREADS = 8  # nodes at once, each on one core; the experts of a published size take some 5 GB each
_stdout = Lock()


class OperatorResult(BaseModel):
    """One operator node: its difference from the torch reference, the bound, and where the worst value lies."""

    label: str
    operator: str
    difference: float | None
    threshold: float
    passed: bool
    detail: str = ""


def operator_results(
    serving: ServingModel,
    exported: onnx.ModelProto,
    requests: Requests,
    batch_size: int,
    *,
    fused: bool = False,
    index: ItemIndex | None = None,
) -> list[OperatorResult]:
    """Compare every operator node of the exported file on the inputs it sees in the packed model, and some on adversarial ones.

    A node that only one of the two has is left to the gate on the file's structure.

    Args:
        serving: The packed model that was exported.
        exported: model.onnx, loaded without its weights; its own functions are what runs.
        requests: A few requests.
        batch_size: Requests per batch.
        fused: Whether to compare the nodes that a build with plugins fuses as well.
        index: The catalogue, which a model that follows one needs.
    """
    residents = index.resident(serving.io) if index is not None and serving.io.resident else {}
    nodes = {node.name: node.op_type for node in exported.graph.node if node.domain == DOMAIN}
    compared: list[tuple[Call, onnx.ModelProto]] = []
    for inputs in feeds(serving.io, requests, batch_size):
        with torch.no_grad(), recorded_calls() as calls:
            serving(*(torch.from_numpy(np.asarray({**inputs, **residents}[tensor.name])) for tensor in serving.io.inputs))
        shared = [call for call in calls if nodes.get(call.label) == call.operator.name]
        compared += [(call, exported) for call in shared]
        if fused and len(shared) == len(calls) == len(nodes):
            graph, more = fused_calls(exported, calls)
            compared += [(call, graph) for call in more]
    with ThreadPoolExecutor(min(_THREADS, usable_cores())) as pool:
        found = pool.map(lambda each: _compare(*each), compared)
        results = list(tracked(found, "operators", len(compared)))
    recorded = [call for call, model in compared if model is exported]
    return results + [_compare(each.call, exported, exact=each.exact) for each in adversarial_calls(recorded)]


def _compare(call: Call, exported: onnx.ModelProto, *, exact: tuple[int, ...] = ()) -> OperatorResult:
    """`exact`: numbers of outputs that must be equal, although the operator's own comparison takes ties in any order."""
    inputs = [tensor.contiguous() for tensor in call.inputs]
    model = single_node_model(call.operator, inputs, call.attributes, list(exported.functions))
    actual = list(OnnxRuntimeRunner(model, threads=1)(feed(inputs)).values())
    expected = as_arrays(call.outputs)
    if not exact:
        actual = without_single_step(call, actual, expected)
    value = call.operator.compare(actual, expected, as_arrays(inputs), call.attributes)
    if not all(np.array_equal(actual[number], expected[number]) for number in exact):
        value = np.inf
    threshold = threshold_of(call)
    passed = bool(value <= threshold)
    return OperatorResult(
        label=call.label,
        operator=call.operator.name,
        difference=value if np.isfinite(value) else None,
        threshold=threshold,
        passed=passed,
        detail="" if passed else _explanation(actual, expected),
    )


def _explanation(actual: list[Array], expected: list[Array]) -> str:
    """Polygraphy's statistics of the worst output, for the message of a failed gate."""
    names = [f"output_{number}" for number in range(len(actual))]
    sides = {"ONNX": actual, "torch": expected}
    results = [IterationResult(dict(zip(names, arrays, strict=True)), runner_name=side) for side, arrays in sides.items()]
    with _stdout, redirect_stdout(StringIO()):  # its log goes there, where the command's result belongs
        compared = CompareFunc.simple(fail_fast=False)(*results)
    worst = max(names, key=lambda name: difference(actual[names.index(name)], expected[names.index(name)]))
    found = compared[worst]
    if not hasattr(found, "max_absdiff"):
        return f"{worst}: shapes {actual[names.index(worst)].shape} and {expected[names.index(worst)].shape}"
    return f"{worst}: largest absolute difference {found.max_absdiff:.3g}, mean {found.mean_absdiff:.3g}"


def operator_gates(recipe: str, results: list[OperatorResult]) -> list[Gate]:
    """One gate per operator type: the largest share of its threshold that any node used."""
    gates = []
    for name in sorted({result.operator for result in results}):
        of_type = [result for result in results if result.operator == name]
        worst = max(of_type, key=lambda r: np.inf if r.difference is None else r.difference / r.threshold)
        value = np.inf if worst.difference is None else worst.difference
        detail = f"worst of {len(of_type)}: {worst.label} {worst.detail}".strip()
        gates.append(gate(f"operator {name}", recipe, value, "<=", worst.threshold, detail))
    return gates


def weight_gate(recipe: str, serving: ServingModel, exported: onnx.ModelProto, folder: Path, name: str = "weights in the file") -> Gate:
    """Every weight in the file has, byte for byte, the value of the packed model's buffer of that name.

    A small buffer that constant folding has turned into other constants is named; the model gates see it. A larger one is missing.
    """
    buffers = dict(serving.named_buffers())
    wrong, compared = [], 0
    with (folder / WEIGHTS_FILE).open("rb") as stream:
        for initializer in exported.graph.initializer:
            if initializer.name not in buffers:
                continue
            place = {entry.key: int(entry.value) for entry in initializer.external_data if entry.key != "location"}
            if place:
                stream.seek(place["offset"])
            stored = stream.read(place["length"]) if place else initializer.raw_data
            expected = buffers[initializer.name].contiguous().view(torch.uint8).numpy().tobytes()
            compared += 1
            if stored != expected:
                wrong.append(initializer.name)
    folded = sorted(buffers.keys() - {initializer.name for initializer in exported.graph.initializer})
    missing = [name for name in folded if buffers[name].numel() > LARGEST_FOLDED]
    detail = f"{compared} tensors compared"
    detail += f"; folded into constants: {', '.join(folded)}" if folded and not missing else ""
    detail += f"; first that is missing: {missing[0]}" if missing else ""
    detail += f"; first that differs: {wrong[0]}" if wrong else ""
    return gate(name, recipe, len(wrong) + len(missing) if compared else np.inf, "<=", 0, detail)
