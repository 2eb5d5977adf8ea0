"""A graph ready for a native build: functions inlined, nodes named, checked, with the shapes of its profiles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx

from ..core.recipe import Profile
from ..core.tensorrt_api import ShapeRange
from .fp8_gemms import QuantisedGemms, quantised_gemms
from .functions import inline_functions, load_graph
from .preconditions import check_graph
from .profiles import profile_shapes


@dataclass(frozen=True)
class NativeGraph:
    """`model` is inlined and checked; its external data still lies beside `source`. `gemms` are those of the exported form."""

    source: Path
    model: onnx.ModelProto
    profiles: list[dict[str, ShapeRange]]
    gemms: QuantisedGemms


def prepare(source: Path, profiles: Sequence[Profile], rewrite: Callable[[onnx.ModelProto], None] | None = None) -> NativeGraph:
    """Inline and check a graph, before any build starts.

    Args:
        source: The exported graph.
        profiles: The recipe's ranges of batch and context.
        rewrite: Changes the inlined graph in place into the forms a library knows. Default: none.

    Raises:
        BuildError: The graph cannot be built natively, or a profile does not fit it; says why and what to do.
    """
    graph = inline_functions(load_graph(source))
    check_graph(graph, source)
    gemms = quantised_gemms(graph)
    if rewrite is not None:
        rewrite(graph)
    return NativeGraph(source, graph, profile_shapes(graph, profiles), gemms)
