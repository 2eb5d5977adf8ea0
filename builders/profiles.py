"""Optimization profiles: the recipe's ranges of batch and context, corrected to what can be built, as shapes of the graph's inputs."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import onnx

from ..core.errors import BuildError
from ..core.graph_io import BATCH, CONTEXT, GraphIO, GraphTensor
from ..core.recipe import Profile
from ..runtime.tensorrt_api import ShapeRange, Target

_log = logging.getLogger(__name__)

MAX_DIMENSION = (1 << 31) - 1  # TensorRT's dimensions
MAX_BYTES = 1 << 39  # of inputs and outputs together: more than the memory of any GPU, which shapes inside a graph outgrow first
# What the builder says of a profile whose maximum it cannot run, without refusing it.
IMPOSSIBLE = "Profile kMAX values are not self-consistent"

_ALONE = (1, 1, 1)
_ALONE_OR_TWO = (1, 1, 2)


def corrected_profiles(profiles: Sequence[Profile], io: GraphIO, target: Target) -> tuple[Profile, ...]:
    """The profiles that are built where the recipe asks for some that cannot be; says each change in a warning.

    A context has as many tokens as the contract demands; runners fill shorter ones up. TensorRT 10.6 fails in its graph compiler
    (tensorbase.cpp:426, strides) where a profile fixes the batch to 1: such a profile takes 2 as well.

    Raises:
        BuildError: The maximum of a profile cannot be run by any GPU.
    """
    for number, profile in enumerate(profiles):
        _require_possible(number, profile, io)
    return tuple(_corrected(number, profile, io.min_context, target) for number, profile in enumerate(profiles))


def _require_possible(number: int, profile: Profile, io: GraphIO) -> None:
    batch, context = profile.batch[2], profile.context[2]
    where, hint = f"build.profiles[{number}]", "lower the maxima to the largest batch and context that are served"
    if max(batch, context) > MAX_DIMENSION:
        raise BuildError(f"no plan has a batch of {batch} and a context of {context}", where=where, hint=hint)
    needed = sum(tensor.nbytes(batch, context) for tensor in (*io.inputs, *io.outputs))
    if needed > MAX_BYTES:
        what = f"inputs and outputs alone would take {needed / 1e12:.3g} TB at a batch of {batch} and a context of {context}"
        raise BuildError(what, where=where, hint=hint)


def _corrected(number: int, profile: Profile, min_context: int, target: Target) -> Profile:
    low, typical, high = (max(size, min_context) for size in profile.context)
    batch = _ALONE_OR_TWO if target == "tensorrt" and profile.batch == _ALONE else profile.batch
    corrected = profile.model_copy(update={"batch": batch, "context": (low, typical, high)})
    for key in (BATCH, CONTEXT):
        asked, taken = list(getattr(profile, key)), list(getattr(corrected, key))
        if asked != taken:
            _log.warning("build.profiles[%d].%s: %s cannot be built, the plan takes %s", number, key, asked, taken)
    return corrected


def profile_shapes(io: GraphIO, profiles: Sequence[Profile]) -> list[dict[str, ShapeRange]]:
    """For each corrected profile the (minimum, typical, maximum) shape of every input."""
    return [{tensor.name: _shapes(tensor, profile) for tensor in io.inputs} for profile in profiles]


def _shapes(tensor: GraphTensor, profile: Profile) -> ShapeRange:
    minimum, typical, maximum = (tensor.shape(batch, context) for batch, context in zip(profile.batch, profile.context, strict=True))
    return minimum, typical, maximum


def require_contract(model: onnx.ModelProto, io: GraphIO, where: str) -> None:
    """Check a graph against the contract it carries.

    Raises:
        BuildError: An input or output is missing, another, or of another type or shape; names it.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    graph = {value.name: value for value in (*model.graph.input, *model.graph.output) if value.name not in constants}
    contract = {tensor.name: tensor for tensor in (*io.inputs, *io.outputs)}
    hint = "build a file that `onerec-trt export` wrote"
    for name in sorted(graph.keys() ^ contract.keys()):
        problem = "is not in its contract" if name in graph else "is in its contract alone"
        raise BuildError(f"the graph's tensor '{name}' {problem}", where=where, hint=hint)
    for name, tensor in contract.items():
        if (found := _described(graph[name])) != (tensor.dtype, tensor.dims):
            problem = f"the graph's tensor '{name}' is {found}, its contract says {(tensor.dtype, tensor.dims)}"
            raise BuildError(problem, where=where, hint=hint)


def _described(value: onnx.ValueInfoProto) -> tuple[str, tuple[int, ...]]:
    kind = value.type.tensor_type
    dims = tuple(dim.dim_value if dim.HasField("dim_value") else -1 for dim in kind.shape.dim)
    return str(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type)), dims
