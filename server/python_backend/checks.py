"""What is wrong with one request, said before it shares a batch with others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ...core.arrays import Array, dtype_name
from ...core.errors import RequestError
from ...core.graph_io import GraphIO, Role
from ...runtime.plan_shapes import check_inputs
from ..repository.limits import Limits, longest_context, most_requests

_EXPONENT_FP16 = 0x7C00  # all bits of the exponent: infinity or NaN


def check_request(io: GraphIO, limits: Sequence[Limits], arrays: Mapping[str, Array], where: str) -> None:
    """Check the inputs of one request, which may hold several contexts.

    Raises:
        RequestError: A type, shape or size is another than the model takes, lengths do not fit the context, or a token is not finite.
    """
    check_inputs(io, {name: (dtype_name(array.dtype), array.shape) for name, array in arrays.items()}, where)
    batch, context = io.sizes({name: array.shape for name, array in arrays.items()})
    if context > (longest := longest_context(limits)):
        hint = f"send at most {longest} tokens, the latest ones"
        raise RequestError(f"the context has {context} tokens, the model takes {longest}", where=where, hint=hint)
    if batch > (most := most_requests(limits, context)):
        raise RequestError(f"{batch} requests with {context} tokens, the model takes {most} at once", where=where, hint="split them")
    counts_B = _counts(arrays[io.name(Role.PATHWAY_LENGTHS)], context, where)
    _require_finite(arrays[io.name(Role.CONTEXT_FEATURES)], counts_B, where)


def _counts(lengths_B3: Array, context: int, where: str) -> list[int]:
    """Tokens of each context."""
    if (lengths_B3.view(np.int64) < 0).any():
        raise RequestError("a length is negative", where=where, hint="give the tokens of each pathway")
    counts = [sum(lengths_3) for lengths_3 in lengths_B3.view(np.int64).tolist()]  # Python's integers, which do not overflow
    for count in counts:
        if not 1 <= count <= context:
            hint = "lengths are the tokens of the static, short-term and long-term pathway; features hold as many tokens, or more"
            raise RequestError(f"lengths add up to {count} tokens, features hold {context}", where=where, hint=hint)
    return counts


def _require_finite(features_BSF: Array, counts_B: Sequence[int], where: str) -> None:
    """What lies behind a context may hold anything."""
    for row, count in enumerate(counts_B):
        bits_SF = np.ascontiguousarray(features_BSF[row, :count]).view(np.uint16)
        broken_SF = (bits_SF & _EXPONENT_FP16) == _EXPONENT_FP16  # several times as fast as isfinite, which converts to FP32
        if broken_SF.any():
            token = int(np.argmax(broken_SF.any(1)))
            raise RequestError(f"token {token} of context {row} holds NaN or infinity", where=where, hint="look at what fills the features")
