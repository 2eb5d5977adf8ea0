"""Optimization profiles: the recipe's ranges of batch and context as shapes of the graph's inputs."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from ..core.errors import BuildError
from ..core.recipe import Profile
from ..runtime.tensorrt_api import ShapeRange

# The dynamic dimensions of the serving graph and the scoring graph: features [B, S, F], lengths [B, 3], sids [B, W, 3].
_RANGES = {"features": ("batch", "context"), "lengths": ("batch",), "sids": ("batch",)}
# With one token and several requests, what TensorRT 10.6 answered one of them changed from run to run on an H200, as if the keys and
# values of all requests lay over each other; from two tokens on it did not. Runners fill a shorter context up.
MIN_CONTEXT = 2


def profile_shapes(model: onnx.ModelProto, profiles: Sequence[Profile]) -> list[dict[str, ShapeRange]]:
    """For each profile the (minimum, typical, maximum) shape of every input. A context has two tokens at least.

    Raises:
        BuildError: An input is not one of the serving graph's, has a dynamic dimension that no range
            covers, or a fixed one outside its range.
    """
    constants = {initializer.name for initializer in model.graph.initializer}
    inputs = [value for value in model.graph.input if value.name not in constants]
    return [{value.name: _shapes(value, profile) for value in inputs} for profile in profiles]


def _shapes(value: onnx.ValueInfoProto, profile: Profile) -> ShapeRange:
    if value.name not in _RANGES:
        raise BuildError(f"input '{value.name}' is not one of {', '.join(_RANGES)}", hint="build a file that `onerec-trt export` wrote")
    names = _RANGES[value.name]
    dims = value.type.tensor_type.shape.dim
    ranges = [_range(value.name, axis, dim, names[axis] if axis < len(names) else None, profile) for axis, dim in enumerate(dims)]
    minimum, typical, maximum = (tuple(r[i] for r in ranges) for i in range(3))
    return minimum, typical, maximum


def _range(tensor: str, axis: int, dim: onnx.TensorShapeProto.Dimension, name: str | None, profile: Profile) -> tuple[int, int, int]:
    where = f"input '{tensor}', axis {axis}"
    fixed = dim.dim_value if dim.HasField("dim_value") else None
    if name is None:
        if fixed is None:
            raise BuildError("a dynamic dimension that no profile range covers", where=where, hint="only batch and context may be dynamic")
        return fixed, fixed, fixed
    low, typical, high = getattr(profile, name)
    if fixed is None:
        least = MIN_CONTEXT if name == "context" else 1
        return max(low, least), max(typical, least), max(high, least)
    if not low == typical == high == fixed:
        raise BuildError(
            f"the graph fixes {name} to {fixed}, the profile asks for {low} to {high}",
            where=where,
            hint=f"set build.profiles[].{name} to [{fixed}, {fixed}, {fixed}]",
        )
    return fixed, fixed, fixed
