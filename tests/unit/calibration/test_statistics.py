"""Streaming statistics against the same numbers computed at once, and the limits of FP16."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onerec_trt.calibration.statistics import (
    HISTOGRAM_BINS,
    HISTOGRAM_LOG10_EDGES,
    RowSample,
    TensorStatistics,
    activation_cast,
    check_fp16_range,
    quantization_error,
)
from onerec_trt.core.errors import CalibrationError
from onerec_trt.core.precision import Granularity
from onerec_trt.operators import fp8
from torch.utils._python_dispatch import TorchDispatchMode


def _gathered(x: torch.Tensor, cuts: list[int]) -> TensorStatistics:
    statistics = TensorStatistics("x")
    for piece in x.tensor_split(sorted(cuts)):
        if len(piece):
            statistics.add(piece)
    return statistics


@settings(max_examples=25, deadline=None)
@given(cuts=st.lists(st.integers(1, 99), max_size=5), scale=st.sampled_from([1e-3, 1.0, 1e3]), seed=st.integers(0, 99))
def test_pieces_give_the_same_as_the_whole(cuts: list[int], scale: float, seed: int) -> None:
    x = (torch.randn(100, 7, generator=torch.Generator().manual_seed(seed)) + 0.5) * scale
    statistics = _gathered(x, cuts)
    assert statistics.variance == pytest.approx(float(x.double().var(correction=0)), rel=1e-9)
    assert statistics.absmax == float(x.abs().max())
    assert statistics.summary().histogram == _gathered(x, []).summary().histogram
    assert statistics.sample.rows is not None
    assert torch.equal(statistics.sample.rows, x)  # small enough to be kept whole


def test_p99_is_exact_when_the_sample_holds_everything() -> None:
    x = torch.arange(1.0, 1001.0).reshape(100, 10)
    assert _gathered(x, []).absp99 == 990.0


def test_p99_of_a_long_stream_is_close_and_the_sample_bounded() -> None:
    generator = torch.Generator().manual_seed(0)
    pieces = [torch.randn(3000, 16, generator=generator) for _ in range(20)]
    statistics = TensorStatistics("x")
    for piece in pieces:
        statistics.add(piece)
    exact = float(torch.cat(pieces).abs().flatten().kthvalue(math.ceil(0.99 * 960000)).values)
    assert statistics.sample.rows is not None
    assert statistics.sample.rows.numel() <= statistics.sample.values
    assert statistics.absp99 == pytest.approx(exact, rel=0.03)


def test_sample_is_every_nth_row_whatever_the_pieces() -> None:
    rows = torch.arange(1000.0)[:, None]
    for cuts in ([], [1, 2, 3, 500], [333, 666]):
        sample = RowSample(values=64)
        for piece in rows.tensor_split(cuts):
            sample.add(piece)
        assert sample.rows is not None
        assert torch.equal(sample.rows, rows[:: sample.stride])
        assert 32 <= len(sample.rows) <= 64


def test_histogram_counts_every_value_in_its_bin() -> None:
    summary = _gathered(torch.tensor([[1.1, -0.011, 1e-12], [0.0, 3e7, 1.1]]), []).summary()
    counts = dict(enumerate(summary.histogram))
    assert sum(counts.values()) == 6
    assert counts[_bin(1.1)] == 2
    assert counts[_bin(0.011)] == 1
    assert counts[0] == 2  # 1e-12 and 0 lie below the first edge
    assert counts[HISTOGRAM_BINS - 1] == 1


def _bin(value: float) -> int:
    return next(i for i, edge in enumerate(HISTOGRAM_LOG10_EDGES[1:]) if math.log10(value) < edge)


def test_rows_of_zeros_do_not_count() -> None:
    x = torch.tensor([[1.0, -1.0], [0.0, 0.0], [3.0, 0.0]])
    assert _gathered(x, []).variance == pytest.approx(float(x[[0, 2]].var(correction=0)))
    empty = _gathered(torch.zeros(4, 3), []).summary()
    assert (empty.variance, empty.absmax, empty.absp99, sum(empty.histogram)) == (0, 0, 0, 0)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_nan_and_infinity_are_refused_by_name(bad: float) -> None:
    x = torch.ones(3, 4)
    x[1, 2] = bad
    with pytest.raises(CalibrationError, match="NaN or infinity") as error:
        TensorStatistics("blocks.0.output").add(x)
    assert error.value.where == "blocks.0.output"


def test_quantization_error_of_known_tensors() -> None:
    error = quantization_error(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 4.5]))
    assert error.snr_db == pytest.approx(20.0)
    assert error.cosine == pytest.approx((9 + 18) / (5 * math.hypot(3, 4.5)))
    exact = quantization_error(torch.ones(3), torch.ones(3))
    assert exact.snr_db is None
    assert exact.cosine == pytest.approx(1)
    assert quantization_error(torch.zeros(3), torch.zeros(3)).cosine is None


def test_finer_scales_leave_less_error() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 256) * torch.logspace(-5, 1, 64)[:, None]  # rows of very different size
    x[:, 128:] *= 1e-5
    amax = float(x.abs().max())
    snr = {g: quantization_error(x[:8], activation_cast(g, amax)(x[:8])).snr_db for g in Granularity if g is not Granularity.NONE}
    tensor, row = snr[Granularity.TENSOR], snr[Granularity.ROW]
    assert tensor is not None
    assert row is not None
    assert tensor < 20 < 28 < row
    small = x[:, 128:]
    through_blocks = activation_cast(Granularity.BLOCK, None)(x)[:, 128:]
    assert quantization_error(small, through_blocks).snr_db > 28  # type: ignore[operator]
    assert quantization_error(small, activation_cast(Granularity.ROW, None)(x)[:, 128:]).snr_db < 20  # type: ignore[operator]


def test_static_cast_saturates_beyond_the_calibrated_amax() -> None:
    cast = activation_cast(Granularity.TENSOR, 2.0)
    assert float(cast(torch.tensor([100.0]))) == pytest.approx(2.0)
    assert torch.equal(cast(torch.tensor([2.0])), fp8.E4M3_MAX * fp8.scale_of(torch.tensor([2.0])))


def test_a_static_cast_divides_by_a_scale_that_lies_beside_its_values() -> None:
    """On a GPU, PyTorch multiplies by the reciprocal of a number on the CPU: another code where a value lies in the middle of two."""

    class Divisors(TorchDispatchMode):
        devices: ClassVar[list[str]] = []

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if func.overloadpacket is torch.ops.aten.div:
                self.devices.append(args[1].device.type)
            return func(*args, **(kwargs or {}))

    with Divisors() as divisors:
        activation_cast(Granularity.TENSOR, 2.0)(torch.zeros(3, 4, device="meta"))
    assert divisors.devices == ["meta", "meta"]  # the scale's own, and that of the codes


def test_fp16_range_warns_and_refuses() -> None:
    assert check_fp16_range("x", 6.5e3) is None
    warning = check_fp16_range("x", 6.6e3)
    assert warning is not None
    assert warning.startswith("x: AbsMax 6600")
    assert check_fp16_range("x", 6.5e4) is not None
    with pytest.raises(CalibrationError, match="FP16 cannot hold"):
        check_fp16_range("x", 6.51e4)
