"""One external file with the weights of both graphs, written straight in the type they are stored in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import onnx_ir as ir

from ..core.errors import ExportError
from ..core.progress import tracked

WEIGHTS_FILE = "weights.data"
ALIGNMENT = 4096  # ONNX recommends page alignment, so that a runtime may map the file into memory
INLINE_BYTES = 1024  # smaller tensors stay in the graph, where shape computations need them


class _Place(NamedTuple):
    offset: int
    length: int


def externalize(models: Sequence[ir.Model], folder: Path) -> int:
    """Write every large initializer once into `folder`/weights.data and point all models there.

    Two initializers of one name are the same tensor in every model. Returns the bytes written.

    Raises:
        ExportError: Two models hold different tensors under one name.
    """
    large: dict[str, ir.TensorProtocol] = {}
    for model in models:
        for name, value in model.graph.initializers.items():
            tensor = value.const_value
            assert tensor is not None, f"initializer {name} has no data"
            if tensor.nbytes < INLINE_BYTES:
                continue
            if not _equal(large.setdefault(name, tensor), tensor):
                what = f"two graphs hold different tensors under one name: {large[name].shape} and {tensor.shape}"
                raise ExportError(what, where=name, hint="report it with the recipe")
    places = _write(large, folder / WEIGHTS_FILE)
    for model in models:
        for name, value in model.graph.initializers.items():
            if name in places:
                place, tensor = places[name], large[name]
                value.const_value = ir.ExternalTensor(
                    WEIGHTS_FILE, place.offset, place.length, tensor.dtype, shape=ir.Shape(tensor.shape.numpy()), name=name, base_dir=folder
                )
    return sum(place.length for place in places.values())


def _equal(one: ir.TensorProtocol, other: ir.TensorProtocol) -> bool:
    """Weights of both graphs are one tensor in memory; a constant that a pass has named is compared by its content."""
    if (tuple(one.shape), one.dtype) != (tuple(other.shape), other.dtype):
        return False
    return one.raw is other.raw or one.tobytes() == other.tobytes()


def _write(tensors: dict[str, ir.TensorProtocol], path: Path) -> dict[str, _Place]:
    places: dict[str, _Place] = {}
    with path.open("wb") as stream:
        for name, tensor in tracked(tensors.items(), "weights", len(tensors)):
            stream.write(bytes(-stream.tell() % ALIGNMENT))
            places[name] = _Place(stream.tell(), tensor.nbytes)
            stream.write(tensor.tobytes())
    return places
