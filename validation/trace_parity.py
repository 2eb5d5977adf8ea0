"""Gate 0, the files: both exported graphs say what this version of the product exports from the quantized checkpoint.

The model is traced and compared with the files line by line: inputs, outputs, types, attributes, wiring, constants and function bodies.
Weights go by their name: their content has a gate of its own.
"""

from __future__ import annotations

from itertools import zip_longest
from pathlib import Path

import onnx_ir as ir

from ..export.serving import ScoringModel, ServingModel
from ..export.structure import Structure, structure_of
from ..export.trace import SCORING_FILE, SERVING_FILE, traced_structures
from .gates import Gate, gate

_SHOWN = 200  # characters of a line in a message


def trace_gates(recipe: str, serving: ServingModel, scoring: ScoringModel, exported: Path) -> list[Gate]:
    """Both files against a trace of the packed model, and the steps of one file against those of the other."""
    traced = traced_structures(serving, scoring)
    weights = {SERVING_FILE: set(dict(serving.named_buffers())), SCORING_FILE: set(dict(scoring.named_buffers()))}
    files = {name: structure_of(ir.load(exported / name), weights[name]) for name in traced}
    gates = [_trace_gate(recipe, name, files[name], traced[name]) for name in traced]
    return [*gates, _bodies_gate(recipe, files[SERVING_FILE], files[SCORING_FILE])]


def _trace_gate(recipe: str, name: str, file: Structure, traced: Structure) -> Gate:
    pairs = list(zip_longest(file.lines, traced.lines, fillvalue="nothing"))
    differing = [(found, expected) for found, expected in pairs if found != expected]
    detail = f"{len(pairs)} lines compared"
    if differing:
        found, expected = _shortened(*differing[0])
        detail = f"first difference: {found}, the trace has {expected}"
    return gate(f"{name} is the trace", recipe, len(differing), "<=", 0, detail)


def _bodies_gate(recipe: str, serving: Structure, scoring: Structure) -> Gate:
    found, expected = serving.bodies, scoring.bodies
    labels = [label for label in {**expected, **found} if found.get(label) != expected.get(label)]
    detail = f"{len(expected)} operators compared"
    if labels:
        one, other = _shortened(found.get(labels[0], "nothing"), expected.get(labels[0], "nothing"))
        detail = f"first that differs: {labels[0]}: {SERVING_FILE} has {one}, {SCORING_FILE} {other}"
    return gate("steps alike in both graphs", recipe, len(labels) if expected else float("inf"), "<=", 0, detail)


def _shortened(*texts: str) -> list[str]:
    return [text if len(text) <= _SHOWN else text[:_SHOWN] + " ..." for text in texts]
