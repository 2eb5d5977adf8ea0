"""What Triton's interpreter does again at every call is done once here, and what it does value by value at once; results are the same."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import numpy as np
import triton.language as tl
from triton.language import core
from triton.language.semantic import TritonSemantic
from triton.runtime import interpreter


def spare_time() -> None:
    """Patch the interpreter of this process, before a kernel runs."""
    known = cache(interpreter._get_np_dtype)
    interpreter._get_np_dtype = lambda kind: np.dtype(np.uint64) if kind.scalar.is_ptr() else known(kind.scalar)
    interpreter._patch_lang(tl.standard.zeros.fn)
    interpreter.InterpretedFunction.__call__ = _call
    interpreter.ReduceOps.generic_reduce = _reduced
    # It computes every integer twice for an assertion that it then leaves out, unless Triton is asked to debug.
    TritonSemantic.binary_op_sanitize_overflow_impl = lambda *_: None
    _remember_shapes()


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    """The language is patched already: `tl` for the kernel that runs, and above what its own functions see."""
    return self.rewrite()(*args, **kwargs)


def _reduced(self: Any, values: Any) -> Any:
    """As a tree of neighbors, in their order: what a kernel reduces with is associative."""
    values, axis = self.unravel(values, self.axis)
    while (count := values[0].handle.data.shape[axis]) > 1:
        halves = [[each.handle.data.take(range(first, count, 2), axis) for each in values] for first in (0, 1)]
        pairs = [self.to_tensor(data, each.dtype) for half in halves for data, each in zip(half, values, strict=True)]
        combined = self.combine_fn.fn(*pairs)
        values = combined if isinstance(combined, tuple) else (combined,)
    results = [each.handle.data if self.keep_dims else each.handle.data.squeeze(axis) for each in values]
    return [self.to_tensor(data, each.dtype) for data, each in zip(results, values, strict=True)]


def _remember_shapes() -> None:
    """Every result of an operation makes its type and shape anew, several objects for each dimension; there are few different ones."""
    make_type = core._type_for_tuple_values
    type_of_sizes = cache(lambda *sizes: make_type([core.constexpr(size) for size in sizes]))
    blocks: dict[tuple[str, tuple[int, ...]], Any] = {}
    make_block = core.block_type.__init__

    def type_of(values: list[Any], fields: Any = None) -> Any:
        sizes = [each.value if isinstance(each, core.constexpr) else each for each in values]
        return type_of_sizes(*sizes) if fields is None and all(type(size) is int for size in sizes) else make_type(values, fields)

    def init_block(self: Any, element_ty: Any, shape: Any) -> None:
        key = (str(element_ty), tuple(each.value if isinstance(each, core.constexpr) else each for each in shape))
        if key not in blocks:
            make_block(self, element_ty, shape)
            blocks[key] = vars(self)
        self.__dict__.update(blocks[key], element_ty=element_ty)

    @cache
    def shape_and_count(*sizes: int) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in sizes]), core.constexpr(math.prod(sizes))

    def init_tensor(self: Any, handle: Any, type: Any) -> None:
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_and_count(*(type.shape if type.is_block() else ()))

    core._type_for_tuple_values = type_of
    core.block_type.__init__ = init_block
    core.tensor.__init__ = init_tensor
