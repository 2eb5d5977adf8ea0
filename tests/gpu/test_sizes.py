"""Full widths on a GPU: scores of 4-layer cuts and of the whole 1B beside PyTorch; isolation of requests."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from onerec_trt.builders.tensorrt import Form, Source, build_plan, plan_jobs
from onerec_trt.calibration.quantized import open_quantized
from onerec_trt.core.recipe import BuildOptions, PrecisionName, Profile
from onerec_trt.export.serving import ScoringModel, ServingModel
from onerec_trt.models.beam_search import path_log_probabilities
from onerec_trt.models.config import SIZES, OneRecConfig
from onerec_trt.models.onerec import OneRec
from onerec_trt.runtime.machine import this_machine
from onerec_trt.runtime.plan_record import PlanRecord
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner
from onerec_trt.tools.bench.plans import make_graph
from torch import Tensor

from .gpu_memory import used

SCHEDULE, WIDE, ERROR_RATIO = (128, 256, 512), (512, 512, 512), 1.1
SHAPES = [(1, 512), (5, 777), (32, 512), (5, 3000), (32, 3000)]
CUT = {size: SIZES[size].with_changes(n_layers=4) for size in ("0.5B", "1B", "4B-A0.5B")}
RUNS = 1000
Kind = tuple[OneRecConfig, PrecisionName, tuple[int, int, int], bool]  # the last says whether kernels run in the plan
KINDS: dict[str, Kind] = {
    "0.5B-fp8-row": (CUT["0.5B"], "fp8-row", SCHEDULE, False),
    "1B-fp16": (CUT["1B"], "fp16", SCHEDULE, False),
    "1B-fp16-kernels": (CUT["1B"], "fp16", SCHEDULE, True),
    "1B-fp8-row": (CUT["1B"], "fp8-row", SCHEDULE, False),
    "1B-fp8-row-kernels": (CUT["1B"], "fp8-row", SCHEDULE, True),
    "1B-2-groups": (CUT["1B"].with_changes(g_kv=2), "fp8-row", SCHEDULE, False),
    "1B-keys-and-values-apart": (CUT["1B"].with_changes(l_kv=1, s_kv=2), "fp8-static", SCHEDULE, False),
    "1B-3-sets": (CUT["1B"].with_changes(l_kv=3, s_kv=1), "fp8-row", SCHEDULE, False),
    "4B-A0.5B-fp8-row": (CUT["4B-A0.5B"], "fp8-row", SCHEDULE, False),  # two dense blocks, two of 53 experts
    "4B-A0.5B-fp8-row-kernels": (CUT["4B-A0.5B"], "fp8-row", SCHEDULE, True),
    "4B-A0.5B-fp8-row-block-kernels": (CUT["4B-A0.5B"], "fp8-row-block", SCHEDULE, True),
    "4B-A0.5B-fp8-paper": (CUT["4B-A0.5B"], "fp8-paper", SCHEDULE, False),
    "4B-A0.5B-fp8-paper-attention-kernels": (CUT["4B-A0.5B"], "fp8-paper-attention", SCHEDULE, True),
    "1B-whole": (SIZES["1B"], "fp8-static", WIDE, False),
    "1B-whole-kernels": (SIZES["1B"], "fp8-row", WIDE, True),
}
# A folder of `onerec-trt bench --work`, whose graph of the whole 1B need not be made again. Default: none.
BENCH_WORK = os.environ.get("ONEREC_TRT_BENCH_WORK")


@dataclass(frozen=True)
class Made:
    """A model of random weights: its quantized checkpoint, and its plan of one form."""

    config: OneRecConfig
    beam: tuple[int, int, int]
    quantized: Path
    plan: Path
    record: PlanRecord


def make(kind: Kind, form: Form, folder: Path, work: Path | None = None) -> Made:
    """The plan of one form in `folder`; checkpoint and graph in `work`. Default: in `folder`, too."""
    config, precision, beam, plugins = kind
    quantized, exported = make_graph(config, precision, beam, work or folder)
    profile = Profile(batch=(1, 32, 32), context=(1, 512, 3072))
    options = BuildOptions(target="tensorrt", profiles=(profile,), plugins=plugins)
    machine = this_machine("tensorrt")
    (job,) = (job for job in plan_jobs(Source(exported, precision), options, machine) if job.form == form)
    return Made(config, beam, quantized, folder / job.name, build_plan(job, options, machine, folder))


def requests(config: OneRecConfig, batch: int, context: int, padding: float = float("nan")) -> dict[str, Tensor]:
    """Requests of ragged lengths on the GPU, the first one full; padding holds what it may hold."""
    generator = torch.Generator("cuda").manual_seed(batch * 10_000 + context)
    lengths = torch.randint(0, context // 3 + 1, (batch, 3), generator=generator, device="cuda")
    lengths[0] = torch.tensor([context // 3, context // 3, context - 2 * (context // 3)])
    features = torch.randn(batch, context, config.feature_width, generator=generator, device="cuda").half()
    features[torch.arange(context, device="cuda") >= lengths.sum(1, keepdim=True)] = padding
    return {"features": features, "lengths": lengths}


@pytest.fixture(scope="module", params=KINDS)
def scoring(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Made]:
    work = Path(BENCH_WORK, "1B-512-512-512") if BENCH_WORK and request.param.startswith("1B-whole") else None
    yield make(KINDS[request.param], "scoring", tmp_path_factory.mktemp("scoring"), work)
    torch.cuda.empty_cache()


@torch.no_grad()
def test_a_plan_is_no_further_from_fp32_than_the_quantized_model(scoring: Made, random_model: Callable[[OneRecConfig], OneRec]) -> None:
    """Mean over requests of the error of log-probabilities against FP32, engine over packed PyTorch model.

    Over all shapes together: the paths of a request share its context and err together, so that one shape with a request or
    five says little.
    """
    exact = random_model(scoring.config).cuda()
    packed = ScoringModel(ServingModel(open_quantized(scoring.quantized), scoring.beam).decoder, scoring.beam[-1]).cuda().eval()
    runner = TensorRtRunner.load(scoring.plan)
    engine, quantized = [], []
    for batch, context in SHAPES:
        inputs = requests(scoring.config, batch, context)
        generator = torch.Generator("cuda").manual_seed(context)
        inputs["sids"] = torch.randint(0, scoring.config.codebook, (batch, scoring.beam[-1], 3), generator=generator, device="cuda")
        clean = inputs["features"].nan_to_num(0).float()
        parts = [slice(first, first + 4) for first in range(0, batch, 4)]  # whole prefixes of FP32: a few requests at a time
        expected = torch.cat([path_log_probabilities(exact, clean[p], inputs["lengths"][p], inputs["sids"][p]) for p in parts])
        engine.append((runner(inputs)["log_probabilities"] - expected).abs().mean((1, 2)))
        quantized.append((packed(*inputs.values()) - expected).abs().mean((1, 2)))
        print(f"{batch} x {context}: engine {engine[-1].mean():.4g}, quantized {quantized[-1].mean():.4g} nat")
    ratio = float(torch.cat(engine).mean() / torch.cat(quantized).mean())
    assert ratio <= ERROR_RATIO


def test_a_plan_in_fp8_holds_its_weights_about_once(scoring: Made) -> None:
    """Bytes of the plan over those of the graph's weights. Native FP16 plans hold some twice: docs/performance.md says why."""
    if scoring.record.precision == "fp16":
        pytest.skip("the bound is for FP8: TensorRT 10.6 transposes FP16 weights for the first step or for the others, as it finds faster")
    assert scoring.record.weight_ratio is not None
    assert scoring.record.weight_ratio <= 1.1, scoring.record.stored_weights


@pytest.fixture(
    scope="module",
    params=["1B-fp8-row", "1B-fp8-row-kernels", "4B-A0.5B-fp8-row", "4B-A0.5B-fp8-row-kernels", "4B-A0.5B-fp8-row-block-kernels"],
)
def serving(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make(KINDS[request.param], "serving", tmp_path_factory.mktemp("serving"))


@pytest.fixture(scope="module")
def search(serving: Made) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    runner = TensorRtRunner.load(serving.plan)

    def run(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
        return runner(inputs)

    return run


def same(actual: dict[str, Tensor], expected: dict[str, Tensor], rows: Tensor | slice = slice(None)) -> bool:
    return all(torch.equal(actual[name][rows], expected[name][rows]) for name in ("sids", "scores"))


@pytest.mark.parametrize("context", [512, 3000])
def test_requests_do_not_touch_each_other(serving: Made, search: Callable[[dict[str, Tensor]], dict[str, Tensor]], context: int) -> None:
    expected = search(requests(serving.config, 32, context, padding=0.0))
    assert (expected["scores"].diff(dim=1) <= 0).all()
    assert same(search(requests(serving.config, 32, context)), expected)  # NaN in the padding
    bad = requests(serving.config, 32, context)
    bad["features"][7] = float("nan")
    neighbors = torch.arange(32, device="cuda") != 7
    assert same(search(bad), expected, neighbors)


def test_a_thousand_runs_of_a_full_width_give_the_same_bits(
    serving: Made, search: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    inputs = requests(serving.config, 32, 512)
    expected = search(inputs)
    assert all(same(search(inputs), expected) for _ in range(RUNS))


def test_a_hundred_shapes_come_and_go_without_growth(serving: Made) -> None:
    """More shapes than there is room for CUDA graphs: each is run, captured and replayed in turn, and soon loses its graph to another.

    The first two rounds may grow what is kept. Two rounds later and more, nothing may be beyond that: tensors to the byte, the rest in
    one round at least, as the driver's pages of 2 MiB may shift. So what leaks 1 MiB in a round shows.
    """
    runner = TensorRtRunner.load(serving.plan, graphs=2)
    shapes = [(batch, context) for batch in (1, 2, 7, 16, 32) for context in range(100, 3000, 145)]
    answers, memory = [], []
    for _ in range(5):
        answers.append([runner(requests(serving.config, *shape))["sids"].cpu() for shape in shapes for _ in range(3)])
        assert runner.graphs == 2
        memory.append(used())
    assert len(shapes) == 100
    assert all(torch.equal(answer, answers[0][place - place % 3]) for each in answers for place, answer in enumerate(each))
    assert max(each.tensors for each in memory[3:]) <= memory[1].tensors, memory
    assert min(each.others for each in memory[3:]) <= memory[1].others, memory
