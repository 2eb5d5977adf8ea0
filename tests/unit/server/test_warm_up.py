"""Which batches run before a model is ready, and which become CUDA graphs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.server.python_backend.warm_up import GRAPHS, graph_shapes, outermost_shapes
from onerec_trt.server.repository.batching import Batching
from onerec_trt.server.repository.limits import Limits

LIMITS = (
    Limits(min_batch=1, max_batch=8, min_context=2, max_context=512),
    Limits(min_batch=1, max_batch=2, min_context=2, max_context=3072),
)


def description(context: int | None, preferred: int = 4, **parameters: str) -> Any:
    batching = Batching(max_batch=8, preferred=preferred, max_queue=0, context=context, why="")
    return SimpleNamespace(name="onerec", limits=LIMITS, batching=batching, parameters=parameters)


def test_the_smallest_and_the_largest_batch_run_at_both_ends_of_the_context() -> None:
    assert outermost_shapes(LIMITS) == [(1, 256), (1, 3072), (2, 3072), (8, 256)]


def test_batches_of_every_size_become_graphs_at_the_context_that_was_measured() -> None:
    assert graph_shapes(description(300)) == [(1, 512), (2, 512), (3, 512), (4, 512)]
    assert graph_shapes(description(3000)) == [(1, 3072), (2, 3072)], "no profile takes more"
    assert graph_shapes(description(300, **{GRAPHS: "1"})) == [(1, 512)]
    assert graph_shapes(description(300, **{GRAPHS: "0"})) == []
    assert graph_shapes(description(None)) == [], "nobody knows which context to capture"


def test_a_limit_that_is_no_number_is_refused() -> None:
    with pytest.raises(ArtifactError, match="cuda_graphs is no number: 'many'"):
        graph_shapes(description(None, **{GRAPHS: "many"}))
