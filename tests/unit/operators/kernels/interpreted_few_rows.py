"""What interpreted.py does, for few rows: products that split K, attention over parts of the context.

The same input twice, a row or a request alone, a bad row among good ones.
"""

from __future__ import annotations

import json

import torch
from interpreted import E4M3, emulate_gpu, execute, program_for
from onerec_trt.operators.kernels.context_attention import context_attention_case, fused_case
from onerec_trt.operators.kernels.fp8_linear import fp8_linear_add_case
from onerec_trt.operators.kernels.linear import linear_add_case
from onerec_trt.operators.kernels.product_cases import FEW, FEW_IN_PARTS, IN_PARTS
from onerec_trt.operators.launch.case import Trial
from onerec_trt.operators.launch.program import evaluated
from onerec_trt.operators.launch.tiles import AttentionTile
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


def attended(trial: Trial) -> dict:
    """Requests of 33, no and all tokens; the first one alone has a shorter context, with other parts behind its end."""
    case = trial.case
    query, context, lengths, *scale = case.tensors("cpu")
    tokens, rows = context.shape[2], case.attributes["rows"]
    lengths.copy_(torch.tensor([33, 0, tokens]))
    program = program_for(trial)
    together = [query, context, lengths, *scale]
    (result,), (again,) = execute(program, together), execute(program, together)
    (alone,) = execute(program, [query[:rows], context[:1, :, :40].contiguous(), lengths[:1], *scale])
    return {
        "case": f"{case.operator} {trial.tile}",
        "parts": evaluated(program.variants[0].launches[0].grid, [tuple(each.shape) for each in together])[1],
        "repeats": torch.equal(result.view(torch.uint8), again.view(torch.uint8)),
        "alone": torch.equal(result[:rows].view(torch.uint8), alone.view(torch.uint8)),
        "empty": bool((result[rows : 2 * rows].float() == 0).all()),
    }


if __name__ == "__main__":
    emulate_gpu()
    torch.manual_seed(0)
    cases = (fp8_linear_add_case(ROWS, 600, 40), fp8_linear_add_case(ROWS, 600, 40, 128), linear_add_case(ROWS, 600, 40))
    products = [outcome(Trial(case, tile)) for case in cases for tile in (FEW, FEW_IN_PARTS, IN_PARTS)]
    part = context_attention_case(3, 2, 4, 2, 150, 16)
    attentions = [attended(Trial(fused_case(part, True, codes), AttentionTile(16, 16, 1, 4, part=16))) for codes in (False, True)]
    print(json.dumps({"products": products, "attentions": attentions}))
