"""How many of the multiplications meant for FP8 a plan runs in FP8, and whether that is enough for the recipe."""

from __future__ import annotations

from collections.abc import Collection

from ..core.errors import BuildError
from ..runtime.plan_record import Fp8Gemms, PlanRecord
from .fp8_gemms import QuantizedGemms

_SHOWN = 5


def count_fp8(gemms: QuantizedGemms, in_fp8: Collection[str] | None, how: str) -> Fp8Gemms:
    """Count the products that the graph means to run in FP8 and those that the plan does.

    Args:
        gemms: What the graph means to run in FP8.
        in_fp8: ONNX nodes that the plan computes in FP8; None: it could not be read.
        how: How they were found.
    """
    expected, dequantized = len(gemms.in_fp8), len(gemms.dequantized)
    if in_fp8 is None:
        return Fp8Gemms(expected=expected, found=None, missing=(), dequantized=dequantized, how=how)
    missing = tuple(name for name in gemms.in_fp8 if name not in in_fp8)
    return Fp8Gemms(expected=expected, found=expected - len(missing), missing=missing, dequantized=dequantized, how=how)


def require_fp8(record: PlanRecord, share: float) -> None:
    """Refuse a plan that runs less in FP8 than the recipe demands. A plan that could not be read passes, and says so in its record.

    Raises:
        BuildError: Names the layers.
    """
    gemms = record.fp8_gemms
    if gemms.found is None or gemms.found >= share * gemms.expected:
        return
    kernels = {node: layer.kernel for layer in record.layers if not layer.in_fp8 for node in layer.nodes}
    named = [f"{node} ({kernels[node]})" if node in kernels else node for node in gemms.missing[:_SHOWN]]
    shown = ", ".join(named) + (", ..." if len(gemms.missing) > _SHOWN else "")
    raise BuildError(
        f"{len(gemms.missing)} of {gemms.expected} matrix multiplications meant for FP8 do not run in FP8: {shown}",
        where=record.plan,
        hint="compare their Q/DQ with a layer that does; a node between DequantizeLinear and MatMul breaks the fusion; "
        f"the recipe's build.fp8_coverage demands {share:g}",
    )
