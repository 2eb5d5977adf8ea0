"""Traces both graphs of a packed model, and remembers what a trace says: a validation after an export needs no second one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import onnx_ir as ir
import torch

from ..core.dtypes import DTYPES
from ..models.config import LEVELS
from .graph import export_graph
from .passes import LARGEST_FOLDED, attach_functions
from .serving import ScoringModel, ServingModel
from .structure import Structure, structure_of

SERVING_FILE, SCORING_FILE = "model.onnx", "scoring.onnx"

_structures: dict[str, dict[str, Structure]] = {}  # of every model that this process has traced


def trace_graphs(serving: ServingModel, scoring: ScoringModel, advance: Callable[[], object] = lambda: None) -> dict[str, ir.Model]:
    """Both graphs by file name, named and with the functions of their operators; weights stay in memory.

    `advance` is called when one is done.
    """
    graphs = {SERVING_FILE: trace_serving(serving)}
    advance()
    features, lengths = _context(serving)
    paths = torch.zeros(2, scoring.paths, LEVELS, dtype=torch.int64)
    graphs[SCORING_FILE] = export_graph(scoring, scoring.io, (features, lengths, paths))
    attach_functions(graphs[SCORING_FILE])
    advance()
    _structures[_key(serving, scoring)] = {
        name: structure_of(graphs[name], set(dict(model.named_buffers())))
        for name, model in ((SERVING_FILE, serving), (SCORING_FILE, scoring))
    }
    return graphs


def trace_serving(serving: ServingModel) -> ir.Model:
    """The serving graph alone."""
    rest = [torch.zeros(tensor.shape(2, 4), dtype=DTYPES[tensor.dtype].torch) for tensor in serving.io.inputs[2:]]
    graph = export_graph(serving, serving.io, (*_context(serving), *rest))
    attach_functions(graph)
    return graph


def _context(serving: ServingModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and lengths of two requests to trace with."""
    return torch.zeros(2, 4, serving.decoder.config.feature_width, dtype=torch.float16), torch.tensor([[1, 1, 2], [1, 2, 0]])


def traced_structures(serving: ServingModel, scoring: ScoringModel) -> dict[str, Structure]:
    """What both graphs of a model say, by file name: from a trace of an equal model in this process, or from one made now."""
    key = _key(serving, scoring)
    if key not in _structures:
        trace_graphs(serving, scoring)
    return _structures[key]


def _key(serving: ServingModel, scoring: ScoringModel) -> str:
    """A hash of everything that decides a trace: sizes, precision, beams, names and types of weights, content of those that are folded."""
    decoder = serving.decoder
    digest = hashlib.sha256(f"{decoder.config!r} {decoder.scheme!r} {serving.widths} {serving.io!r} {scoring.paths}".encode())
    for name, buffer in serving.named_buffers():
        digest.update(f"{name} {buffer.dtype} {tuple(buffer.shape)}".encode())
        if buffer.numel() <= LARGEST_FOLDED:
            digest.update(buffer.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
