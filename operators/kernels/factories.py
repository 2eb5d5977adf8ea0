"""Every operator that has a kernel: how its launch program is made, and the layout in which the kernel wants its weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from ..operator import Array
from .factory import Node
from .program import Program

Prepare = Callable[[Array], Array]


@dataclass(frozen=True)
class KernelFactory:
    """What the builder pass asks.

    Attributes:
        program: The launch program of a node; None: it has no kernel and is built natively. Outputs at the end that nobody
            reads may be left out of the program.
        prepare: By input, what turns an initializer into the layout the kernel wants. Inputs that are not named stay as they are.
    """

    program: Callable[[Node], Program | None]
    prepare: Mapping[int, Prepare] = field(default_factory=dict)


FACTORIES: dict[str, KernelFactory] = {}
