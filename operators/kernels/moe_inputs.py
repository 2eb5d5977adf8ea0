"""The inputs of a node of experts: where each stands, whether they fit together, and the sizes that they give."""

from __future__ import annotations

from ...core.errors import BuildError
from ...core.precision import BLOCK
from ..launch.node import Node, expect, expect_size, static
from .moe_products import Experts
from .moe_scheme import Scheme, Share, scheme_of


def places(scheme: Scheme) -> dict[str, int]:
    """Where each input of the experts stands; those of a norm that is fused with them follow."""
    scaled = scheme.operand != "float16"
    weights = ("gate_up", "gate_up_scale", "down", "down_scale") if scaled else ("gate_up", "down")
    hidden = ("hidden_scale",) if scheme.hidden is Share.EXPERT else ()
    names = ("x", *(("x_scale",) if scaled else ()), *weights, *hidden, "index", "weight", "residual")
    return {name: index for index, name in enumerate(names)}


def experts_of(node: Node) -> Experts:
    """The sizes of a node.

    Raises:
        BuildError: An attribute is missing, or an input has another type or shape than the others ask for.
    """
    scheme = scheme_of(node.operator)
    at = places(scheme)
    _check_types(node, scheme)
    experts, promotion = int(node.attributes["experts"]), int(node.attributes.get("promotion", 0))
    if promotion not in (0, BLOCK):
        raise BuildError(f"promotion every {promotion} channels", where=node.operator, hint=f"choose 0 or {BLOCK}")
    d, h = static(node, at["residual"], -1), static(node, at["gate_up"], 0) // (2 * experts)
    sizes = Experts(scheme, experts, static(node, at["index"], -1), d, h, node.width, promotion)
    _hold(node, "gate_up", 2 * experts * h, node.width)
    _hold(node, "down", experts * d, h)
    expect_size(node, at["weight"], sizes.slots)
    if scheme.weight is Share.CHANNEL:
        _hold(node, "gate_up_scale", 2 * experts * h)
        _hold(node, "down_scale", experts * d)
    elif scheme.weight is Share.BLOCK:
        _hold(node, "gate_up_scale", 2 * experts * h, sizes.x_scales)
        _hold(node, "down_scale", experts * d, sizes.hidden_scales)
    if scheme.hidden is Share.EXPERT:
        _hold(node, "hidden_scale", experts)
    return sizes


def _check_types(node: Node, scheme: Scheme) -> None:
    dtypes = dict.fromkeys(("x", "gate_up", "down"), scheme.operand) | {"index": "int64", "residual": "float16"}
    for name, index in places(scheme).items():
        expect(node, index, dtypes.get(name, "float32"))
    for name in ("experts", *(["promotion"] if scheme.operand != "float16" else [])):
        if name not in node.attributes:
            raise BuildError(f"the attribute {name} is missing", where=node.operator, hint="correct the graph")


def _hold(node: Node, name: str, *shape: int) -> None:
    index = places(scheme_of(node.operator))[name]
    found = tuple(static(node, index, axis) for axis in range(len(shape)))
    if found != shape:
        raise BuildError(f"{name} is {list(found)}, must be {list(shape)}", where=node.operator, hint="correct the graph")
