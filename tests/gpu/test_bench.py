"""The benchmark on a GPU, in miniature: the baseline's three ways agree with each other, and a whole run gives a whole result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.calibration.random_checkpoint import RandomWeights
from onerec_trt.models.beam_search import beam_search, path_log_probabilities
from onerec_trt.models.config import OneRecConfig, parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.tools.bench.candidates import TORCH_ENGINES, EngineName, batch_features, torch_candidate
from onerec_trt.tools.bench.case import parse_case
from onerec_trt.tools.bench.plans import SEED
from onerec_trt.tools.bench.run import BenchOptions, bench
from onerec_trt.tools.bench.torch_baseline import TorchBaseline

DENSE = parse_config({"d_model": 256, "n_layers": 2, "n_heads": 2, "d_head": 128, "embed_dim": 16, "codebook": 256, "ffn_hidden": 512})
MOE = parse_config(DENSE.model_dump() | {"moe": {"experts": 4, "top_k": 2, "hidden": 256, "shared": 1, "dense_layers": 1}})
CASE = parse_case("4x16-32-32x64")


REGRET_NAT = 0.02  # of items found in BF16, whose scores are about -16 nat; items picked blindly are worse by more than 1


@pytest.mark.parametrize("config", [DENSE, MOE], ids=["dense", "experts"])
@pytest.mark.parametrize("engine", TORCH_ENGINES)
def test_every_way_to_run_the_baseline_finds_the_best_items(
    config: OneRecConfig, engine: EngineName, random_model: Callable[[OneRecConfig], OneRec]
) -> None:
    """By their mean FP32 score: the order of near-ties does not matter, wrong items do."""
    model, lengths = random_model(config), torch.tensor([CASE.lengths] * CASE.batch)
    features = batch_features(CASE, config).float().cpu()
    best = float(beam_search(model, features, lengths, CASE.beam).scores_BW.mean())
    run = torch_candidate(engine, TorchBaseline(RandomWeights(config, SEED)), CASE)
    for _ in range(3):
        found = path_log_probabilities(model, features, lengths, run().cpu()).sum(-1)
        assert float(found.mean()) >= best - REGRET_NAT


def test_a_whole_run_gives_a_whole_result(tmp_path: Path) -> None:
    options = BenchOptions(
        models={"tiny": DENSE},
        cases=(CASE, parse_case("1x16-32-32x32")),
        recipes=("fp16", "fp8-static", "fp8-row"),
        engines=TORCH_ENGINES,
        samples=30,
        folder=tmp_path / "work",
        commit="test",
    )
    report = bench(options, tmp_path / "bench.json")
    assert report["environment"]["valid"], report["environment"]["invalid_because"]
    assert len(report["results"]) == 2 * (3 + 3)
    assert all(result["latency_ms"]["median"] > result["limit_ms"] for result in report["results"])
    assert {plan["recipe"] for plan in report["environment"]["plans"]} == {"fp16", "fp8-static", "fp8-row"}
    shared = report["environment"]["agreement"][0]["share_of_items_of_the_first"]
    assert shared["tensorrt fp16"] > 0.8
