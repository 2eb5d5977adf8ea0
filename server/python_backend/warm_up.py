"""Which batches run before a model is ready, and which of them become CUDA graphs: shapes as requests and tokens.

Without a graph a batch of another shape than the one before makes TensorRT propagate shapes through the whole plan, and launch it
kernel by kernel, while the GPU waits.
"""

from __future__ import annotations

from collections.abc import Sequence

from ...core.errors import ArtifactError
from ..repository.limits import Limits, longest_context, most_requests
from ..repository.version import VersionDescription
from .packing import rounded_context

GRAPHS = "cuda_graphs"  # parameter: the largest batch that becomes a CUDA graph; 0: none. Default: the batch that the server fills up to


def outermost_shapes(limits: Sequence[Limits]) -> list[tuple[int, int]]:
    """One request and the largest batch, at the shortest and at the longest context."""
    contexts = {rounded_context(limits, 1), longest_context(limits)}
    return sorted({(batch, context) for context in contexts for batch in (1, most_requests(limits, context))})


def graph_shapes(description: VersionDescription) -> list[tuple[int, int]]:
    """Batches of every size, of requests as long as those that the batching was measured with; none where it was not measured.

    Raises:
        ArtifactError: The parameter is no number.
    """
    text = description.parameters.get(GRAPHS, str(description.batching.preferred))
    if not text.isdecimal():
        raise ArtifactError(f"the parameter {GRAPHS} is no number: {text!r}", where=description.name, hint="add the version again")
    if description.batching.context is None:
        return []
    context = rounded_context(description.limits, description.batching.context)
    return [(batch, context) for batch in range(1, min(int(text), most_requests(description.limits, context)) + 1)]
