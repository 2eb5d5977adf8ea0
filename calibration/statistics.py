"""Distribution of a tensor seen piece by piece, in bounded memory: variance, AbsMax, AbsP99, histogram, quantization error."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.precision import FP16_MAX, FP16_REFUSE, FP16_WARN, Granularity
from ..operators import fp8
from .fp16_loss import FP16_ROUNDING
from .summary import TensorSummary

# Edges of the histograms in log10 |x|; smaller values (and zeros) fall into the first bin, larger ones into the last.
LOG10_FIRST, LOG10_LAST, LOG10_STEP = -8.0, 5.0, 0.25
HISTOGRAM_BINS = round((LOG10_LAST - LOG10_FIRST) / LOG10_STEP)
HISTOGRAM_LOG10_EDGES = tuple(LOG10_FIRST + LOG10_STEP * index for index in range(HISTOGRAM_BINS + 1))

OUTLIER = 100.0  # AbsMax in AbsP99 from which on a tensor has outliers: a normal distribution has 2, a heavy-tailed SwiGLU 10 to 30
SAMPLE_VALUES = 1 << 15  # values kept of a stream: AbsP99 then rests on the 330 largest of them


class RowSample:
    """Every n-th row of a stream, n doubling whenever the sample gets too large: deterministic and evenly spread."""

    def __init__(self, values: int = SAMPLE_VALUES) -> None:
        self.values, self.stride, self.seen = values, 1, 0
        self.rows: Tensor | None = None

    def add(self, rows_NK: Tensor) -> None:
        kept = rows_NK[-self.seen % self.stride :: self.stride].float()
        self.seen += len(rows_NK)
        self.rows = kept.clone() if self.rows is None else torch.cat([self.rows, kept])
        while len(self.rows) > 1 and self.rows.numel() > self.values:
            self.rows, self.stride = self.rows[::2].clone(), self.stride * 2


class TensorStatistics:
    """Statistics of one tensor, gathered from any number of pieces [..., K].

    Rows of zeros do not count: they are padding, or the attention of an empty context.
    """

    def __init__(self, name: str, sample_values: int = SAMPLE_VALUES) -> None:
        self.name = name
        self.sample = RowSample(sample_values)
        self.absmax = 0.0
        self._count, self._mean, self._squares = 0, 0.0, 0.0
        self._fp16_noise, self._fp16_signal = 0.0, 0.0
        self._histogram = torch.zeros(HISTOGRAM_BINS, dtype=torch.int64)

    def add(self, x: Tensor) -> None:
        """Take in one piece.

        Raises:
            CalibrationError: It holds NaN or infinity.
        """
        rows_NK = x.detach().reshape(-1, x.shape[-1]).float()
        if not rows_NK.numel():
            return
        row_max_N = rows_NK.abs().amax(1)
        # Two transfers for each piece: a model of experts has thousands of tensors, and a GPU waits at each one.
        largest, filled = torch.stack([row_max_N.max().double(), row_max_N.count_nonzero().double()]).tolist()
        if not math.isfinite(largest):
            raise CalibrationError(
                "a tensor holds NaN or infinity", where=self.name, hint="check the checkpoint's weights and the features of the requests"
            )
        if filled < len(rows_NK):
            rows_NK = rows_NK[row_max_N > 0]
        if rows_NK.numel():
            self.absmax = max(self.absmax, largest)
            self._merge_sums(rows_NK)
            self._histogram = self._histogram.to(rows_NK.device) + _log10_histogram(rows_NK.abs())
            self.sample.add(rows_NK)

    @property
    def variance(self) -> float:
        return self._squares / self._count if self._count else 0.0

    @property
    def fp16_error(self) -> float:
        """|x - fp16(x)| / |x|, of all pieces together."""
        return math.sqrt(self._fp16_noise / self._fp16_signal) if self._fp16_signal else 0.0

    @property
    def absp99(self) -> float:
        if self.sample.rows is None:
            return 0.0
        magnitude = self.sample.rows.abs().flatten()
        return float(magnitude.kthvalue(math.ceil(0.99 * len(magnitude))).values)

    def summary(self, error: QuantizationError | None = None, score_error: float | None = None) -> TensorSummary:
        return TensorSummary(
            name=self.name,
            quantized=error is not None,
            variance=self.variance,
            absmax=self.absmax,
            absp99=self.absp99,
            snr_db=error.snr_db if error else None,
            cosine=error.cosine if error else None,
            score_error=score_error,
            histogram=tuple(self._histogram.tolist()),
            fp16_ok=self.absmax <= FP16_REFUSE,
            fp16_error=self.fp16_error,
        )

    def _merge_sums(self, rows_NK: Tensor) -> None:
        """Sums in FP64: Chan's formula for the variance of two parts, and the error of FP16."""
        count, values = rows_NK.numel(), rows_NK.double()
        inside_NK = rows_NK.clamp(-FP16_MAX, FP16_MAX)  # what lies beyond is refused by its AbsMax
        noise, signal = (inside_NK.half().double() - inside_NK).square().sum(), values.square().sum()
        center = values.mean()
        mean, squares, noise, signal = torch.stack([center, (values - center).square().sum(), noise, signal]).tolist()
        delta, total = mean - self._mean, self._count + count
        self._squares += squares + delta * delta * self._count * count / total
        self._mean += delta * count / total
        self._count = total
        self._fp16_noise += noise
        self._fp16_signal += signal


def _log10_histogram(magnitude: Tensor) -> Tensor:
    inside = magnitude.clamp(10.0**LOG10_FIRST, 10.0**LOG10_LAST).log10().clamp(LOG10_FIRST, LOG10_LAST)
    return torch.histc(inside, HISTOGRAM_BINS, LOG10_FIRST, LOG10_LAST).to(torch.int64)


@dataclass(frozen=True)
class QuantizationError:
    """How far quantized values are from the exact ones: signal-to-noise ratio in dB, and cosine."""

    snr_db: float | None
    cosine: float | None


def quantization_error(exact: Tensor, quantized: Tensor) -> QuantizationError:
    """Both tensors of one shape, any dtype; computed in FP64."""
    x, y = exact.flatten().double(), quantized.flatten().double()
    signal, noise, size = float(x.square().sum()), float((x - y).square().sum()), float(y.square().sum())
    snr = 10 * math.log10(signal / noise) if signal > 0 and noise > 0 else None
    cosine = float(x @ y) / math.sqrt(signal * size) if signal > 0 and size > 0 else None
    return QuantizationError(snr, cosine)


def activation_cast(granularity: Granularity, input_amax: float | None) -> Callable[[Tensor], Tensor]:
    """The function that quantizes and dequantizes activations [..., K] the way the serving graph will."""
    if granularity in (Granularity.TENSOR, Granularity.BOUND):
        assert input_amax is not None
        return partial(_through_one_scale, input_amax)
    if granularity is Granularity.ROW:
        return _through_rows
    assert granularity in (Granularity.BLOCK, Granularity.ROW_BLOCK), granularity
    return lambda x: fp8.dequantize_row_blocks(*fp8.quantize_row_blocks(x))[..., : x.shape[-1]]


def _through_one_scale(input_amax: float, x: Tensor) -> Tensor:
    # The scale lies beside x: PyTorch multiplies by the reciprocal of a number that lies on the CPU, as `fp8.scale_of` says.
    scale = fp8.scale_of(torch.full((), input_amax, device=x.device))
    return fp8.quantize_tensor(x, scale).float() * scale


def _through_rows(x: Tensor) -> Tensor:
    codes, scale = fp8.quantize_rows(x)
    return codes.float() * scale


def outliers(absmax: float, absp99: float) -> str | None:
    """How far a tensor's largest value lies above nearly all others, in words; None where it has no outliers."""
    if absmax <= OUTLIER * absp99:
        return None
    return f"AbsMax is {absmax / absp99:.0f} x AbsP99" if absp99 else "AbsP99 is 0"


def check_fp16_range(name: str, absmax: float) -> str | None:
    """A warning if the tensor comes close to the end of FP16, None if it does not.

    Raises:
        CalibrationError: FP16 cannot hold it.
    """
    if absmax > FP16_REFUSE:
        raise CalibrationError(
            f"FP16 cannot hold this tensor: its AbsMax is {absmax:.4g}, the end of FP16 is 65504",
            where=name,
            hint="scale the weights that make it, or train with a norm or clipping in front of it",
        )
    return f"{name}: AbsMax {absmax:.4g} comes close to the end of FP16 (65504)" if absmax > FP16_WARN else None


def check_fp16_error(name: str, error: float) -> str | None:
    """A warning if so much of an activation is subnormal in FP16 that it loses more than rounding can."""
    if error <= FP16_ROUNDING:
        return None
    return f"{name}: mostly subnormal in FP16; the error is {error:.2g} of the tensor, beyond that of rounding ({FP16_ROUNDING:.2g})"
