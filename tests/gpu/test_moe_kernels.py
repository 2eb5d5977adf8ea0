"""Experts in every way to cut them and under every kind of routing; test_kernels.py has them at the sizes of the model."""

from __future__ import annotations

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.operators.kernels.moe_cases import moe_experts_case, moe_route_case
from onerec_trt.operators.kernels.moe_scheme import SCHEMES
from onerec_trt.operators.kernels.registry import program_of
from onerec_trt.operators.launch.case import Case
from onerec_trt.operators.launch.launch import bind, execute, new_outputs
from onerec_trt.operators.launch.tiles import ExpertTile, committed_tiles
from onerec_trt.tools.tuning.parity import this_capability
from torch import Tensor

RUNS = 1000
INDEX, RESIDUAL = -3, -1
TILES = (
    ExpertTile(128, 128, 128, 4, 5, 12, 132),
    ExpertTile(128, 192, 128, 3, 4, 12, 132),
    ExpertTile(128, 128, 128, 2, 3, 12, 7),
    ExpertTile(64, 64, 64, 3, 3, 4),
    ExpertTile(16, 16, 32, 6, 6, 4),
)


def moved(case: Case, actual: Tensor, inputs: list[Tensor]) -> float:
    """Difference of what the experts add to the residual."""
    (expected,) = case.reference(inputs)
    residual = inputs[RESIDUAL].float()
    return difference((actual.float() - residual).cpu().numpy(), (expected.float() - residual).cpu().numpy())


@pytest.mark.parametrize("tile", TILES, ids=str)
@pytest.mark.parametrize("operator", SCHEMES)
def test_every_way_to_cut_them(operator: str, tile: ExpertTile) -> None:
    torch.manual_seed(1)
    for rows, h in ((300, 1408), (2000, 384)):
        case = moe_experts_case(operator, rows, 640, h, 9, 3)
        tiles = committed_tiles().with_entries(case.entries(this_capability(), tile))
        inputs = case.tensors("cuda")
        (actual,) = execute(program_of(case, this_capability(), tiles), inputs)
        assert moved(case, actual, inputs) <= case.threshold


@pytest.mark.parametrize("operator", SCHEMES)
@pytest.mark.parametrize("promotion", [0, 128])
def test_every_kind_of_routing(operator: str, promotion: int) -> None:
    """All tokens at few experts, tokens without a valid expert, and one expert alone."""
    torch.manual_seed(1)
    case = moe_experts_case(operator, 1000, 640, 384, 9, 3, promotion=promotion)
    program, inputs = program_of(case, this_capability()), case.tensors("cuda")
    for kind in ("crowded", "strangers", "last"):
        if kind == "crowded":
            inputs[INDEX][:] = torch.tensor([7, 1, 0])
        elif kind == "strangers":
            inputs[INDEX][::7] = torch.tensor([-1, 1 << 40, 9])
        else:
            inputs[INDEX][:] = torch.tensor([8, -1, -1])
        (actual,) = execute(program, inputs)
        assert moved(case, actual, inputs) <= case.threshold


@pytest.mark.parametrize("operator", SCHEMES)
@pytest.mark.parametrize("rows", [130, 4100])
def test_same_input_same_bits_also_in_a_graph(operator: str, rows: int) -> None:
    case = moe_experts_case(operator, rows, 1408, 1408)
    program, inputs = program_of(case, this_capability()), case.tensors("cuda")
    (expected,) = execute(program, inputs)
    (output,) = outputs = new_outputs(program, inputs)
    run = bind(program, inputs, outputs)
    for _ in range(RUNS):
        output.fill_(float("nan"))
        run()
        assert torch.equal(output, expected)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    output.fill_(float("nan"))
    graph.replay()
    torch.cuda.synchronize()
    assert torch.equal(output, expected)


def test_routes_agree_with_fp64_outside_of_ties() -> None:
    torch.manual_seed(1)
    case = moe_route_case(4100, 1408, 53, 3, 1)
    x, router, bias = inputs = case.tensors("cuda")
    index, weight = execute(program_of(case, this_capability()), inputs)
    score = (x.double() @ router.double().T).sigmoid()
    best = (score + bias).sort(dim=1, descending=True)
    clear = (best.values[:, :4].diff(dim=1).abs() > 1e-5).all(1)
    assert clear.float().mean() > 0.99
    assert torch.equal(index[clear][:, :3], best.indices[clear][:, :3])
    chosen = score.gather(1, index[:, :3])
    torch.testing.assert_close(weight[:, :3].double(), chosen / chosen.sum(1, keepdim=True), rtol=2e-6, atol=0)
    assert (index[:, 3] == 53).all()
    assert (weight[:, 3] == 1).all()
