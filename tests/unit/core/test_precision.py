"""The precisions are what their sources say."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onerec_trt.core.precision import E4M3_MAX, FP16_MAX, FP16_REFUSE, PRECISIONS, Granularity


def test_limits_are_those_of_the_formats() -> None:
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == E4M3_MAX
    assert float(np.finfo(np.float16).max) == FP16_MAX > FP16_REFUSE


def test_the_paper_uses_rows_for_linears_and_blocks_for_experts() -> None:
    assert (PRECISIONS["fp8-paper"].linears, PRECISIONS["fp8-paper"].experts) == (Granularity.ROW, Granularity.BLOCK)


def test_only_static_activations_need_a_calibrated_amax() -> None:
    assert [name for name, precision in PRECISIONS.items() if precision.needs_activation_amax] == ["fp8-static"]


def test_all_but_fp16_are_quantized() -> None:
    assert [name for name, precision in PRECISIONS.items() if not precision.is_quantized] == ["fp16"]
