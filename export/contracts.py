"""The contracts of the two graphs that export writes: the only place that spells the names of their inputs and outputs."""

from __future__ import annotations

from ..core.graph_io import BATCH, CONTEXT, GraphIO, GraphTensor, Role
from ..models.config import LEVELS, PATHWAYS

# With one token and several requests, what TensorRT 10.6 answered one of them changed from run to run on an H200, as if the keys and
# values of all requests lay over each other; from two tokens on it did not.
MIN_CONTEXT = 2


def serving_io(feature_width: int, beams: int) -> GraphIO:
    """Contract of model.onnx: a context in, that many items out, best first."""
    found = GraphTensor(name="sids", role=Role.FOUND_ITEMS, dtype="int64", axes=(BATCH, beams, LEVELS))
    scores = GraphTensor(name="scores", role=Role.ITEM_SCORES, dtype="float32", axes=(BATCH, beams))
    return GraphIO(inputs=_context(feature_width), outputs=(found, scores), min_context=MIN_CONTEXT)


def scoring_io(feature_width: int, paths: int) -> GraphIO:
    """Contract of scoring.onnx: a context and that many items in, the log-probability of each of their tokens out."""
    given = GraphTensor(name="sids", role=Role.GIVEN_ITEMS, dtype="int64", axes=(BATCH, paths, LEVELS))
    scores = GraphTensor(name="log_probabilities", role=Role.TOKEN_SCORES, dtype="float32", axes=(BATCH, paths, LEVELS))
    return GraphIO(inputs=(*_context(feature_width), given), outputs=(scores,), min_context=MIN_CONTEXT)


def _context(feature_width: int) -> tuple[GraphTensor, ...]:
    return (
        GraphTensor(name="features", role=Role.CONTEXT_FEATURES, dtype="float16", axes=(BATCH, CONTEXT, feature_width)),
        GraphTensor(name="lengths", role=Role.PATHWAY_LENGTHS, dtype="int64", axes=(BATCH, len(PATHWAYS))),
    )
