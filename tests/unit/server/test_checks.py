"""What is wrong with a request is said; what lies behind its context is not looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import RequestError
from onerec_trt.export.contracts import serving_io
from onerec_trt.server.python_backend.checks import check_request
from onerec_trt.server.repository.limits import Limits

IO = serving_io(3, 2)
LIMITS = (
    Limits(min_batch=1, max_batch=4, min_context=2, max_context=8),
    Limits(min_batch=1, max_batch=2, min_context=2, max_context=16),
)


def request(batch: int = 2, tokens: int = 6, **changes: Any) -> dict[str, Any]:
    lengths = np.tile(np.array([1, 2, 2], np.int64), (batch, 1))
    return {"features": np.ones((batch, tokens, 3), np.float16), "lengths": lengths, **changes}


def with_value(value: float, token: int) -> dict[str, Any]:
    arrays = request()
    arrays["features"][1, token, 2] = value
    return arrays


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        (request(tokens=17), "the context has 17 tokens, the model takes 16"),
        (request(batch=3, tokens=9), "3 requests with 9 tokens, the model takes 2 at once"),
        (request(lengths=np.array([[1, 2, 2], [1, -1, 2]])), "a length is negative"),
        (request(lengths=np.array([[1, 2, 2], [0, 0, 0]])), "lengths add up to 0 tokens, features hold 6"),
        (request(lengths=np.array([[1, 2, 2], [3, 3, 1]])), "lengths add up to 7 tokens, features hold 6"),
        (request(lengths=np.array([[1, 2, 2], [2**63 - 1, 2**63 - 1, 7]])), "lengths add up to 18446744073709551621 tokens"),
        (request(lengths=np.ones((3, 3), np.int64)), "inputs are of different batch sizes"),
        (request(features=np.ones((2, 6, 3), np.float32)), "'features' is float32, the plan takes float16"),
        (request(other=np.ones(3)), "'other' is not one of the plan's"),
        (with_value(np.nan, 4), "token 4 of context 1 holds NaN or infinity"),
        (with_value(-np.inf, 0), "token 0 of context 1 holds NaN or infinity"),
    ],
)
def test_a_bad_request_is_refused(arrays: dict[str, Any], said: str) -> None:
    with pytest.raises(RequestError, match=said):
        check_request(IO, LIMITS, arrays, "onerec")


def test_good_ones_pass_whatever_lies_behind_their_contexts() -> None:
    check_request(IO, LIMITS, request(batch=4, tokens=8), "onerec")
    check_request(IO, LIMITS, with_value(65504.0, 4), "onerec")
    check_request(IO, LIMITS, with_value(np.nan, 5), "onerec")
