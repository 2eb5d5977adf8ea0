"""The contracts of the two graphs that export writes: the only place that spells the names of their inputs and outputs."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.graph_io import BATCH, CONTEXT, GraphIO, GraphTensor, Role
from ..core.recipe import ExportOptions
from ..models.config import LEVELS, PATHWAYS
from ..runtime.item_index import words_of

# With one token and several requests, what TensorRT 10.6 answered one of them changed from run to run on an H200, as if the keys and
# values of all requests lay over each other; from two tokens on it did not.
MIN_CONTEXT = 2


def serving_io(feature_width: int, beams: int) -> GraphIO:
    """Contract of model.onnx: a context in, that many items out, best first."""
    found = GraphTensor(name="sids", role=Role.FOUND_ITEMS, dtype="int64", axes=(BATCH, beams, LEVELS))
    scores = GraphTensor(name="scores", role=Role.ITEM_SCORES, dtype="float32", axes=(BATCH, beams))
    return GraphIO(inputs=_context(feature_width), outputs=(found, scores), min_context=MIN_CONTEXT)


@dataclass(frozen=True)
class ItemSizes:
    """What a graph that follows a catalogue has room for.

    Args:
        codebook: Tokens of a level.
        items: Different semantic IDs.
        excluded: Semantic IDs that a request may exclude.
        classes: Category classes.
    """

    codebook: int
    items: int
    excluded: int
    classes: int

    @classmethod
    def of(cls, options: ExportOptions, codebook: int) -> ItemSizes | None:
        """Those of an export; none with open beams. There are no more semantic IDs than the codebook allows."""
        if options.items == "open":
            return None
        return cls(codebook, min(options.item_capacity, codebook**LEVELS), options.max_excluded, options.category_classes)


def item_serving_io(feature_width: int, beams: int, sizes: ItemSizes) -> GraphIO:
    """Contract of a model.onnx that follows a catalogue: as `serving_io`, with the rules of each request and the resident index."""
    opened = serving_io(feature_width, beams)
    rules = {
        "limits": (Role.REQUEST_LIMITS, 3),
        "allowed": (Role.ALLOWED_CLASSES, sizes.classes),
        "excluded": (Role.EXCLUDED_SIDS, sizes.excluded),
    }
    pairs = (sizes.codebook, words_of(sizes.codebook))
    index: dict[str, tuple[Role, tuple[int, ...]]] = {
        "first_classes": (Role.FIRST_CLASSES, (sizes.codebook,)),
        "pair_bits": (Role.PAIR_BITS, pairs),
        "pair_ranks": (Role.PAIR_RANKS, pairs),
        "pair_classes": (Role.PAIR_CLASSES, (sizes.items,)),
        "pair_rows": (Role.PAIR_ROWS, (sizes.items + 1,)),
        "entries": (Role.SID_ENTRIES, (sizes.items,)),
    }
    given = (
        *(GraphTensor(name=name, role=role, dtype="int32", axes=(BATCH, size)) for name, (role, size) in rules.items()),
        *(GraphTensor(name=name, role=role, dtype="int32", axes=axes, kind="resident") for name, (role, axes) in index.items()),
    )
    return opened.model_copy(update={"inputs": (*opened.inputs, *given)})


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
