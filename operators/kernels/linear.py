"""Linear and LinearAdd on the GPU: FP16 products with FP32 accumulation; the residual is added before the one rounding."""

from __future__ import annotations

from ..launch.node import Node, expect, static
from ..launch.program import Program
from .product import Product, product_program


def linear_program(node: Node) -> Program:
    """Linear: x FP16 [..., K], weight FP16 [N, K] to FP16 [..., N]."""
    return _program(node, residual=None)


def linear_add_program(node: Node) -> Program:
    """LinearAdd: the same and residual FP16 [..., N]."""
    expect(node, 2, "float16")
    return _program(node, residual=2)


def _program(node: Node, residual: int | None) -> Program:
    for index in range(2):
        expect(node, index, "float16")
    product = Product("float16", static(node, 1, 0), static(node, 1, 1), residual=residual is not None)
    return product_program(node, product, weight=1, scales=None, residual=residual)
