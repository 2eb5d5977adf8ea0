"""What FP16 costs a tensor at the lower end of its range: values that become zero or subnormal, and the error this makes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

FP16_NORMAL_MIN = 2.0**-14  # smaller values are subnormal: each has an absolute error up to 2^-25 instead of a relative one
FP16_ROUNDING = 2.0**-11  # no normal value has a larger relative error, so no tensor of normal values has


class Fp16Loss(BaseModel):
    """What FP16 leaves of one tensor [..., N, K].

    Args:
        name: The tensor.
        zero: Share of its values that become zero, of those that are not.
        subnormal: Share that becomes subnormal.
        error: |x - fp16(x)| / |x| of the whole tensor, Euclidean norms.
        lossy_rows: Share of its rows (output channels, or embeddings) whose error is beyond FP16_ROUNDING.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    name: str
    zero: float
    subnormal: float
    error: float
    lossy_rows: float

    @property
    def beyond_rounding(self) -> bool:
        """Whether underflow, and not rounding, makes most of the error somewhere in the tensor."""
        return self.error > FP16_ROUNDING or self.lossy_rows > 0

    def sentence(self) -> str:
        """For a warning: the tensor, the shares, the error."""
        rows = f" in {_share(self.lossy_rows)} of its rows" if self.error <= FP16_ROUNDING else ""
        return (
            f"{self.name}: FP16 makes {_share(self.zero)} of its values zero and {_share(self.subnormal)} subnormal; the error is "
            f"{self.error:.2g} of the tensor, and beyond that of rounding ({FP16_ROUNDING:.2g}){rows}"
        )


def fp16_loss(name: str, x: Tensor) -> Fp16Loss:
    """Measure one FP32 tensor. Rows of zeros do not count."""
    x_NK = x.detach().float().reshape(-1, x.shape[-1] if x.ndim > 1 else max(1, x.numel()))
    largest_N = x_NK.abs().amax(1) if x_NK.numel() else x_NK.new_zeros(0)
    x_NK, largest_N = x_NK[largest_N > 0], largest_N[largest_N > 0]
    if not x_NK.numel():
        return Fp16Loss(name=name, zero=0, subnormal=0, error=0, lossy_rows=0)
    kept_NK = x_NK.half().float()
    # In units of each row's largest value: squares of values near 1e-23 would leave the range of FP32 themselves.
    noise_N = ((kept_NK - x_NK) / largest_N[:, None]).square().sum(1)
    signal_N = (x_NK / largest_N[:, None]).square().sum(1)
    units_N = largest_N.double().square()
    filled = int(x_NK.count_nonzero())
    zero = int(((x_NK != 0) & (kept_NK == 0)).sum())
    subnormal = int(((kept_NK != 0) & (kept_NK.abs() < FP16_NORMAL_MIN)).sum())
    return Fp16Loss(
        name=name,
        zero=zero / filled,
        subnormal=subnormal / filled,
        error=float(((noise_N * units_N).sum() / (signal_N * units_N).sum()).sqrt()),
        lossy_rows=float((noise_N > FP16_ROUNDING**2 * signal_N).float().mean()),
    )


def without_subnormals(x: Tensor) -> Tensor:
    """FP32 values whose subnormal ones are as FP16 keeps them, and all others exact: what underflow alone does."""
    return torch.where(x.abs() < FP16_NORMAL_MIN, x.half().float(), x)


def underflow_warnings(losses: Sequence[Fp16Loss]) -> list[str]:
    """One for every tensor that loses more than rounding can."""
    return [loss.sentence() for loss in losses if loss.beyond_rounding]


def _share(part: float) -> str:
    return f"{100 * part:.3g} %"
