"""Which optimization profile serves a request batch, and what is wrong with inputs that none serves or a plan that breaks its contract."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..core.errors import ArtifactError, RequestError
from ..core.graph_io import CONTEXT, GraphIO, GraphTensor
from .tensorrt_api import ShapeRange, TensorInfo

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Profile = Mapping[str, ShapeRange]


def choose_profile(io: GraphIO, profiles: Sequence[Profile], shapes: Shapes, where: str) -> int:
    """Number of the narrowest profile that takes these shapes: the one whose largest shapes are smallest.

    A context shorter than a profile takes is no obstacle: `filled_up` says how long it must become.

    Args:
        io: The plan's contract.
        profiles: The plan's.
        shapes: Of the inputs that come with a batch.
        where: Names the plan in errors.

    Raises:
        RequestError: No profile takes them; names the limits of each.
    """
    some = io.sizes(shapes)[1] >= 1
    fitting = [number for number, profile in enumerate(profiles) if some and _fits(profile, filled_up(io, profile, shapes))]
    if not fitting:
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        limits = "; ".join(f"profile {number}: {_limits(profile)}" for number, profile in enumerate(profiles))
        hint = "split the batch, shorten the context, or build the plan with a wider profile"
        raise RequestError(f"the request is beyond every profile of the plan: {asked}", where=f"{where}, {limits}", hint=hint)
    return min(fitting, key=lambda number: _volume(profiles[number]))


def filled_up(io: GraphIO, profile: Profile, shapes: Shapes) -> dict[str, Shape]:
    """The shapes with a context as long as the profile takes at least, and never shorter than the contract demands."""
    tokens = max(io.sizes(shapes)[1], io.min_context, io.sizes(_smallest(profile))[1])
    return {tensor.name: _with_context(tensor, shapes[tensor.name], tokens) for tensor in io.per_request}


def largest_batch_and_context(io: GraphIO, profile: Profile) -> tuple[int, int]:
    """Most requests of a batch and most tokens of a context that a profile takes."""
    return io.sizes({name: _maximum(shapes) for name, shapes in profile.items()})


def check_inputs(io: GraphIO, found: Mapping[str, tuple[str, Shape]], where: str) -> None:
    """Check the inputs of a batch, given as (data type, shape) by name, against the contract.

    Raises:
        RequestError: An input is missing or unknown, its type or shape is another, or batches differ; names it.
    """
    expected = {tensor.name: tensor for tensor in io.per_request}
    for name in sorted(expected.keys() ^ found.keys()):
        problem = "is missing" if name in expected else "is not one of the plan's"
        raise RequestError(f"input '{name}' {problem}", where=where, hint=f"the plan takes {', '.join(expected)}")
    for name, tensor in expected.items():
        check_array(tensor, *found[name], where)
    for axis in ("batch", "context"):
        sizes = {name: found[name][1][tensor.axes.index(axis)] for name, tensor in expected.items() if axis in tensor.axes}
        if len(set(sizes.values())) > 1:
            raise RequestError(f"inputs are of different {axis} sizes: {sizes}", where=where)


def check_array(tensor: GraphTensor, dtype: str, shape: Shape, where: str) -> None:
    """Check one array against the contract.

    Raises:
        RequestError: Its type or shape is another.
    """
    if dtype != tensor.dtype:
        raise RequestError(f"input '{tensor.name}' is {dtype}, the plan takes {tensor.dtype}", where=where, hint="convert it first")
    if len(shape) != len(tensor.dims) or any(size not in (-1, given) for size, given in zip(tensor.dims, shape, strict=True)):
        hint = "a -1 stands for any size within the profile"
        raise RequestError(f"input '{tensor.name}' has shape {list(shape)}, the plan takes {list(tensor.dims)}", where=where, hint=hint)


def require_contract(io: GraphIO, inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo], where: str) -> None:
    """Check what TensorRT says of a plan against its contract. Sizes of outputs that TensorRT does not know count as right.

    Raises:
        ArtifactError: A tensor is missing, unknown, or of another type or shape; names it.
    """
    hint = "the record is not of this plan: copy both again, or build the plan again"
    for expected, found, known in ((io.inputs, inputs, True), (io.outputs, outputs, False)):
        by_name = {tensor.name: tensor for tensor in found}
        if names := sorted({tensor.name for tensor in expected} ^ by_name.keys()):
            raise ArtifactError(f"the plan's tensors are not those of its contract: {', '.join(names)}", where=where, hint=hint)
        for tensor in expected:
            actual = by_name[tensor.name]
            if actual.dtype != tensor.dtype or not _agree(tensor.dims, actual.shape, known):
                what = f"the plan's '{tensor.name}' is {actual.dtype} {list(actual.shape)}"
                raise ArtifactError(f"{what}, its contract says {tensor.dtype} {list(tensor.dims)}", where=where, hint=hint)


def _agree(expected: Shape, actual: Shape, known: bool) -> bool:
    if len(expected) != len(actual):
        return False
    return all(size == found or (found == -1 and not known) for size, found in zip(expected, actual, strict=True))


def _with_context(tensor: GraphTensor, shape: Shape, tokens: int) -> Shape:
    return tuple(tokens if axis == CONTEXT else size for axis, size in zip(tensor.axes, shape, strict=True))


def _fits(profile: Profile, shapes: Shapes) -> bool:
    return all(
        low <= size <= high
        for name, shape in shapes.items()
        for low, size, high in zip(profile[name][0], shape, _maximum(profile[name]), strict=True)
    )


def _smallest(profile: Profile) -> dict[str, Shape]:
    return {name: smallest for name, (smallest, _, _) in profile.items()}


def _limits(profile: Profile) -> str:
    return ", ".join(f"{name} {list(smallest)} to {list(largest)}" for name, (smallest, _, largest) in profile.items())


def _volume(profile: Profile) -> int:
    return sum(math.prod(_maximum(shapes)) for shapes in profile.values())


def _maximum(shapes: ShapeRange) -> Shape:
    return shapes[2]
