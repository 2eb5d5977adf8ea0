"""The node of a graph that a kernel factory is asked about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .program import InputType


@dataclass(frozen=True)
class Node:
    """A node of the graph, as a kernel factory sees it.

    Attributes:
        operator: Its op type.
        inputs: Type and shape of each input as the kernel gets it, None where a dimension is dynamic.
        attributes: Its ONNX attributes.
        capability: Compute capability of the GPU, such as "9.0".
        read: For each output whether somebody reads it. Default: all are read.
    """

    operator: str
    inputs: tuple[InputType, ...]
    attributes: Mapping[str, int | float]
    capability: str
    read: tuple[bool, ...] = ()
