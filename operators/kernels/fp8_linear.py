"""Fp8Linear and Fp8LinearAdd on the GPU: E4M3 products, both scales and the residual in the epilogue, one rounding to FP16."""

from __future__ import annotations

from ...core.errors import BuildError
from ..launch.node import Node, expect, static
from ..launch.program import Program
from .product import Product, product_program


def fp8_linear_program(node: Node) -> Program:
    """Fp8Linear: codes [..., K], scale FP32 [1] or [..., 1], weight codes [N, K], weight scale FP32 [N] to FP16 [..., N]."""
    return _program(node, residual=None)


def fp8_linear_add_program(node: Node) -> Program:
    """Fp8LinearAdd: the same and residual FP16 [..., N]."""
    expect(node, 4, "float16")
    return _program(node, residual=4)


def _program(node: Node, residual: int | None) -> Program:
    for index, dtype in enumerate(("float8_e4m3fn", "float32", "float8_e4m3fn", "float32")):
        expect(node, index, dtype)
    if "promotion" not in node.attributes:
        raise BuildError("the attribute promotion is missing", where=node.operator, hint="correct the graph")
    product = Product(
        "float8_e4m3fn",
        n=static(node, 2, 0),
        k=static(node, 2, 1),
        row_scales=len(node.inputs[1].shape) > 1,
        residual=residual is not None,
        promotion=int(node.attributes["promotion"]),
    )
    return product_program(node, product, weight=2, scales=(1, 3), residual=residual)
