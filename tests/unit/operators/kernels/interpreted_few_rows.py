"""What interpreted.py does, for products that split K over warps and CTAs: the same input twice, a row alone, a bad row among good ones."""

from __future__ import annotations

import json

import torch
from interpreted import E4M3, emulate_gpu, execute, program_for
from onerec_trt.operators.kernels.fp8_linear import fp8_linear_add_case
from onerec_trt.operators.kernels.linear import linear_add_case
from onerec_trt.operators.kernels.product_cases import FEW, FEW_IN_PARTS, IN_PARTS
from onerec_trt.operators.launch.case import Trial
from torch import Tensor

ROWS, BAD = 18, 2  # two row tiles


def first_row(inputs: list[Tensor]) -> list[Tensor]:
    """Of every input that has a value for each row."""
    return [each[:1] if each.shape[0] == ROWS else each for each in inputs]


def outcome(trial: Trial) -> dict:
    inputs, good = trial.case.tensors("cpu"), torch.arange(ROWS) != BAD
    program = program_for(trial)
    (result,), (again,) = execute(program, inputs), execute(program, inputs)
    (alone,) = execute(program, first_row(inputs))
    spoiled = inputs[0].clone()
    spoiled.view(torch.uint8)[BAD] = torch.tensor([float("nan")]).to(E4M3).view(torch.uint8)  # twice it is NaN in FP16, too
    (beside,) = execute(program, [spoiled, *inputs[1:]])
    return {
        "case": f"{trial.case.operator} {trial.tile}",
        "launches": len(program.variant([tuple(each.shape) for each in inputs]).launches),
        "repeats": torch.equal(result, again),
        "alone": torch.equal(result[:1], alone),
        "spoils": bool(beside[BAD].isnan().all()),
        "moves": not torch.equal(beside[good], result[good]),
    }


if __name__ == "__main__":
    emulate_gpu()
    torch.manual_seed(0)
    cases = (fp8_linear_add_case(ROWS, 600, 40), fp8_linear_add_case(ROWS, 600, 40, 128), linear_add_case(ROWS, 600, 40))
    print(json.dumps([outcome(Trial(case, tile)) for case in cases for tile in (FEW, FEW_IN_PARTS, IN_PARTS)]))
