"""The limits of number formats are those of the libraries that implement them."""

from __future__ import annotations

import ml_dtypes
import numpy as np
from onerec_trt.core.precision import E4M3_MAX, FP16_MAX, FP16_REFUSE


def test_limits_are_those_of_the_formats() -> None:
    assert float(ml_dtypes.finfo(ml_dtypes.float8_e4m3fn).max) == E4M3_MAX
    assert float(np.finfo(np.float16).max) == FP16_MAX > FP16_REFUSE
