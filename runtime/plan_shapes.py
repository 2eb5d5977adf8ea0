"""Which optimization profile serves a request batch, and what is wrong with inputs that none serves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ..builders.profiles import MIN_CONTEXT
from ..core.errors import RequestError
from .tensorrt_api import ShapeRange, TensorInfo

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Profile = Mapping[str, ShapeRange]

_FEATURES = "features"  # [B, S, F], the input that has the context


def choose_profile(profiles: Sequence[Profile], shapes: Shapes, where: str) -> int:
    """Number of the narrowest profile that takes these shapes: the one whose largest shapes are smallest.

    A context shorter than a profile takes is no obstacle: `filled_up` says how long it must become.

    Raises:
        RequestError: No profile takes them; names the limits of each.
    """
    some = shapes[_FEATURES][1] >= 1
    fitting = [number for number, profile in enumerate(profiles) if some and _fits(profile, filled_up(profile, shapes))]
    if not fitting:
        asked = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        limits = "; ".join(f"profile {number}: {_limits(profile)}" for number, profile in enumerate(profiles))
        hint = "split the batch, shorten the context, or build the plan with a wider profile"
        raise RequestError(f"the request is beyond every profile of the plan: {asked}", where=f"{where}, {limits}", hint=hint)
    return min(fitting, key=lambda number: _volume(profiles[number]))


def filled_up(profile: Profile, shapes: Shapes) -> dict[str, Shape]:
    """The shapes with a context as long as the profile takes at least, and never shorter than any plan takes."""
    batch, tokens, width = shapes[_FEATURES]
    return {**shapes, _FEATURES: (batch, max(tokens, MIN_CONTEXT, profile[_FEATURES][0][1]), width)}


def shapes_of(tensors: Sequence[TensorInfo], batch: int, context: int) -> dict[str, Shape]:
    """Input shapes of a request batch: dynamic first axes are the batch, other dynamic axes the context."""
    return {t.name: tuple((context if axis else batch) if size < 0 else size for axis, size in enumerate(t.shape)) for t in tensors}


def check_inputs(tensors: Sequence[TensorInfo], found: Mapping[str, tuple[str, Shape]], where: str) -> None:
    """Check the inputs, given as (data type, shape) by name, against the plan's.

    Raises:
        RequestError: An input is missing or unknown, its type or shape is another, or batches differ; names it.
    """
    expected = {tensor.name: tensor for tensor in tensors}
    for name in sorted(expected.keys() ^ found.keys()):
        problem = "is missing" if name in expected else "is not one of the plan's"
        raise RequestError(f"input '{name}' {problem}", where=where, hint=f"the plan takes {', '.join(expected)}")
    for name, tensor in expected.items():
        dtype, shape = found[name]
        if dtype != tensor.dtype:
            raise RequestError(f"input '{name}' is {dtype}, the plan takes {tensor.dtype}", where=where, hint="convert it first")
        if len(shape) != len(tensor.shape) or any(size not in (-1, given) for size, given in zip(tensor.shape, shape, strict=True)):
            hint = "a -1 stands for any size within the profile"
            raise RequestError(f"input '{name}' has shape {list(shape)}, the plan takes {list(tensor.shape)}", where=where, hint=hint)
    batches = {name: shape[0] for name, (_, shape) in found.items() if expected[name].shape[0] < 0}
    if len(set(batches.values())) > 1:
        raise RequestError(f"inputs are of different batches: {batches}", where=where)


def _fits(profile: Profile, shapes: Shapes) -> bool:
    return all(
        low <= size <= high
        for name, shape in shapes.items()
        for low, size, high in zip(profile[name][0], shape, _most(profile[name]), strict=True)
    )


def _limits(profile: Profile) -> str:
    return ", ".join(f"{name} {list(smallest)} to {list(largest)}" for name, (smallest, _, largest) in profile.items())


def _volume(profile: Profile) -> int:
    return sum(math.prod(_most(shapes)) for shapes in profile.values())


def _most(shapes: ShapeRange) -> Shape:
    return shapes[2]
