"""What an operator is: one step of the model, as PyTorch reference and as ONNX function.

Calling an operator runs its PyTorch reference; inside an ONNX export it puts one node of the `onerec`
domain into the graph instead. Calls can be recorded, to feed other implementations the same inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import onnx
import torch
from onnxscript import opset21
from onnxscript.values import Opset
from torch import Tensor

from ..core.arrays import Array as Array  # operators take it from here
from ..core.difference import difference

DOMAIN = "onerec"
VERSION = 1
OPSET = 21
op = opset21  # the standard operators, as every ONNX function writes them
ONEREC = Opset(DOMAIN, VERSION)
DETAIL = Opset("onerec.detail", VERSION)  # shared pieces of functions; never a node of the graph itself

FP16_THRESHOLD = 1e-6  # difference metric; FP16 rounding in another order stays near 1e-8
FP8_THRESHOLD = 1e-5  # a code flips where two FP32 values straddle a rounding boundary; one in 10^4 gives about 1e-6

Attributes = dict[str, int | float]


class Spec(NamedTuple):
    """Type and shape of one output; a dimension is an int or symbolic while exporting."""

    dtype: torch.dtype
    shape: tuple[int | torch.SymInt, ...]


class Function(Protocol):
    """What gives an ONNX function; a decorated one of onnxscript does."""

    def to_function_proto(self) -> onnx.FunctionProto: ...


Compare = Callable[[list[Array], list[Array], list[Array], Attributes], float]


def largest_difference(actual: list[Array], expected: list[Array], _inputs: list[Array], _attributes: Attributes) -> float:
    """The default comparison: the worst difference over the outputs."""
    return max(difference(a, e) for a, e in zip(actual, expected, strict=True))


@dataclass(frozen=True)
class Operator:
    """One operator of the `onerec` domain.

    Args:
        name: ONNX op type.
        reference: PyTorch function of the inputs and attributes, which defines the operator. Returns a tuple.
        function: The same in standard ONNX operators.
        outputs: Output specifications from the inputs and attributes, without computing.
        helpers: Functions of the `onerec.detail` domain that `function` calls.
        threshold: Largest difference between two implementations on identical inputs.
        compare: How actual and expected outputs are compared. Default: the worst `difference`.
    """

    name: str
    reference: Callable[..., tuple[Tensor, ...]]
    function: Function
    outputs: Callable[..., tuple[Spec, ...]]
    helpers: tuple[Function, ...] = ()
    threshold: float = FP16_THRESHOLD
    compare: Compare = field(default=largest_difference)

    def __call__(self, *inputs: Tensor, **attributes: int | float) -> tuple[Tensor, ...]:
        exporting = torch.onnx.is_in_onnx_export()
        outputs = self._symbolic(inputs, attributes) if exporting else self.reference(*inputs, **attributes)
        if (recorder := _recorder.get()) is not None and (not recorder.only or self.name in recorder.only):
            recorder.calls.append(Call(self, ".".join(_scope.get()), inputs, attributes, outputs))
        return outputs

    def _symbolic(self, inputs: tuple[Tensor, ...], attributes: Attributes) -> tuple[Tensor, ...]:
        specs = self.outputs(*inputs, **attributes)
        return tuple(
            torch.onnx.ops.symbolic_multi_out(
                f"{DOMAIN}::{self.name}",
                inputs,
                {**attributes},
                dtypes=[spec.dtype for spec in specs],
                shapes=[spec.shape for spec in specs],
                version=VERSION,
            )
        )


class Call(NamedTuple):
    """One recorded use of an operator; `label` says where in the model it stands."""

    operator: Operator
    label: str
    inputs: tuple[Tensor, ...]
    attributes: Attributes
    outputs: tuple[Tensor, ...]


class _Recorder(NamedTuple):
    calls: list[Call]
    only: Collection[str]


_recorder: ContextVar[_Recorder | None] = ContextVar("recorder", default=None)
_scope: ContextVar[tuple[str, ...]] = ContextVar("scope", default=())


@contextmanager
def recorded_calls(only: Collection[str] = ()) -> Iterator[list[Call]]:
    """Collect every operator call made inside the block, in order.

    `only`: the operators whose calls are kept; those of others would hold every tensor of the model. Default: all.
    """
    calls: list[Call] = []
    token = _recorder.set(_Recorder(calls, only))
    try:
        yield calls
    finally:
        _recorder.reset(token)


@contextmanager
def scope(name: str) -> Iterator[None]:
    """Prefix the labels of calls made inside the block with `name`."""
    token = _scope.set((*_scope.get(), name))
    try:
        yield
    finally:
        _scope.reset(token)
