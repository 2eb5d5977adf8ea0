"""BeamStep in Triton's interpreter against a stable sort of the very totals the kernel computes; prints what differs, as JSON.

The normalizers are the kernel's own, read from its scratch: with them every total is known to the last bit, and so is the outcome.
"""

from __future__ import annotations

import json
from collections.abc import Iterator

import torch
from interpreted import CAPABILITY, builds, emulate_gpu, execute, new_scratch
from onerec_trt.models.ordering import stable_topk
from onerec_trt.operators.kernels.beam_step_cases import beam_step_case
from onerec_trt.operators.kernels.registry import program_of
from torch import Tensor

NORMALIZER = 2  # number of its buffer
NAN, INFINITY = float("nan"), float("inf")


def outcome(logits: Tensor, scores: Tensor, width: int) -> dict:
    """Values of each output that are not those of the stable sort, and the largest error of a normalizer."""
    program = program_of(beam_step_case(*scores.shape, logits.shape[1], width), CAPABILITY, compile_with=builds.numbered)
    scratch = new_scratch(program, [logits, scores])
    actual = execute(program, [logits, scores], scratch)
    normalizer = scratch[NORMALIZER].view(torch.float32)
    batch, rows = scores.shape
    total = (logits.float() - normalizer[:, None]).view(batch, rows, -1) + scores[..., None]
    best, flat = stable_topk(total.flatten(1), width)
    expected = [best, flat // logits.shape[1], flat % logits.shape[1]]
    unequal = [int((~torch.isclose(a, e, rtol=0, atol=0, equal_nan=True)).sum()) for a, e in zip(actual, expected, strict=True)]
    exact = logits.double().logsumexp(-1).float()
    finite = exact.isfinite()
    error = (normalizer - exact)[finite].abs().max().item() if finite.any() else 0.0
    return {"unequal": unequal, "error": error, "nan_agrees": bool((normalizer.isnan() == ~finite).all())}


def cases() -> Iterator[tuple[str, Tensor, Tensor, int]]:
    torch.manual_seed(0)
    for batch, rows, vocabulary, width in (
        (1, 1, 1, 1),
        (2, 1, 32, 32),
        (3, 1, 200, 128),
        (2, 5, 37, 185),
        (3, 7, 130, 60),
        (2, 16, 1030, 40),
        (1, 9, 2176, 512),
        (2, 33, 256, 64),
        (1, 40, 3000, 1024),
    ):
        logits, scores = torch.randn(batch * rows, vocabulary).mul(3).half(), torch.randn(batch, rows)
        yield "random", logits, scores, width
        yield "ties", logits.mul(0.5).round(), scores.round(), width
        yield "all equal", torch.zeros_like(logits), torch.zeros_like(scores), width
        rare = logits.masked_fill(torch.rand(logits.shape) < 0.9, -INFINITY)
        yield "mostly -inf", rare, scores, width
        bad = logits.clone()
        bad[::3, 0], bad[1::5] = NAN, INFINITY
        yield "NaN rows", bad, scores, width
        odd = scores.clone()
        odd[0, ::2], odd[-1, 0], odd[0, -1] = -INFINITY, NAN, INFINITY
        yield "odd scores", rare, odd, width


def neighbors_moved() -> bool:
    """Spoils one request of three; whether a bit of the others' outputs is then another."""
    logits, scores = torch.randn(3 * 5, 140).half(), torch.randn(3, 5)
    program = program_of(beam_step_case(3, 5, 140, 33), CAPABILITY, compile_with=builds.numbered)
    clean = execute(program, [logits, scores])
    bad = logits.clone()
    bad[5:10] = NAN
    dirty = execute(program, [bad, scores])
    assert dirty[0][1].isnan().all()
    return not all(torch.equal(a[[0, 2]], b[[0, 2]]) for a, b in zip(clean, dirty, strict=True))


if __name__ == "__main__":
    emulate_gpu()
    outcomes = [
        {"case": f"{name}: {list(scores.shape)} rows of {logits.shape[1]}, width {width}", **outcome(logits, scores, width)}
        for name, logits, scores, width in cases()
    ]
    print(json.dumps({"outcomes": outcomes, "neighbors_moved": neighbors_moved()}))
