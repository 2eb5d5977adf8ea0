"""The runner on a GPU: parity with ONNX Runtime, isolation of bad requests, the same bits every time, threads, shapes, bad input."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from onerec_trt.builders.stage import build_stage
from onerec_trt.calibration.random_checkpoint import random_quantized_checkpoint
from onerec_trt.core.artifacts import read_json, sha256, write_json
from onerec_trt.core.errors import ArtifactError, GpuError, RequestError
from onerec_trt.core.recipe import BuildOptions, ExportOptions
from onerec_trt.core.stages import run_stage
from onerec_trt.export.stage import export_stage
from onerec_trt.models.config import parse_config
from onerec_trt.runtime.engine import Execution
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.runtime.plan_record import PlanRecord, record_path
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner

BEAM, CODEBOOK, BATCH, CONTEXT = 16, 256, 32, 64
CONFIG = parse_config(
    {
        "d_model": 256,
        "n_layers": 2,
        "n_heads": 2,
        "d_head": 128,
        "embed_dim": 16,
        "codebook": CODEBOOK,
        "ffn_hidden": 512,
        "moe": {"experts": 4, "top_k": 2, "hidden": 256, "shared": 1, "dense_layers": 1},
    }
)
PROFILES = [{"batch": [1, 1, 1], "context": [1, 32, CONTEXT]}, {"batch": [1, BATCH, BATCH], "context": [1, 32, CONTEXT]}]
PARITY_NAT = 5e-3  # two FP16 engines of two layers
WRONG_NAT = 0.1  # a wrong scale or a missing layer gives more
NEAR_TIES = 0.01  # share of paths whose token has two experts a hair apart, of which the engines may choose different ones
Arrays = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runner")
    random_quantized_checkpoint(CONFIG, "fp16", root / "quantized", 0)
    run_stage(export_stage(ExportOptions(beam=(BEAM,) * 3), root / "quantized", root / "exported"))
    return root / "exported"


@pytest.fixture(scope="module")
def plans(exported: Path) -> Path:
    options = BuildOptions.model_validate({"target": "tensorrt", "profiles": PROFILES})
    run_stage(build_stage(options, "fp16", exported, exported.parent / "plans-tensorrt"))
    return exported.parent / "plans-tensorrt"


@pytest.fixture(scope="module")
def plan_of(plans: Path) -> Callable[[str], Path]:
    """The plan of a form, serving or scoring."""
    return lambda form: next(path for path in plans.glob("*.plan") if path.stem.endswith("scoring") == (form == "scoring"))


@pytest.fixture
def serving(plan_of: Callable[[str], Path]) -> TensorRtRunner:
    return TensorRtRunner.load(plan_of("serving"))


@pytest.fixture
def scoring(plan_of: Callable[[str], Path]) -> TensorRtRunner:
    return TensorRtRunner.load(plan_of("scoring"))


def batch_of(batch: int, context: int, *, seed: int = 0, padding: float = np.nan, form: str = "serving") -> Arrays:
    """Requests of ragged lengths; what lies behind a context's end is `padding`."""
    rng = np.random.default_rng(seed)
    lengths = np.stack([rng.integers(0, most + 1, batch) for most in (context // 3, context // 3, context - 2 * (context // 3))], 1)
    lengths[0] = [context // 3, context // 3, context - 2 * (context // 3)]  # the first is full
    features = rng.standard_normal((batch, context, CONFIG.feature_width)).astype(np.float16)
    features[np.arange(context) >= lengths.sum(1, keepdims=True)] = padding
    arrays: Arrays = {"features": features, "lengths": lengths}
    if form == "scoring":
        arrays["sids"] = rng.integers(0, CODEBOOK, (batch, BEAM, 3))
    return arrays


def assert_same_bits(actual: Mapping[str, Any], expected: Mapping[str, Any], rows: Any = slice(None)) -> None:
    assert actual.keys() == expected.keys()
    for name, array in expected.items():
        assert np.asarray(actual[name])[rows].tobytes() == np.asarray(array)[rows].tobytes(), name


@pytest.mark.parametrize(("batch", "context"), [(1, 1), (3, 1), (32, 1), (32, 2), (9, 7), (1, 64), (5, 33), (32, 64)])
def test_scoring_scores_are_those_of_onnx_runtime(scoring: TensorRtRunner, exported: Path, batch: int, context: int) -> None:
    inputs = batch_of(batch, context, form="scoring")
    expected = OnnxRuntimeRunner(exported / "scoring.onnx")(inputs)["log_probabilities"]
    actual = scoring(inputs)["log_probabilities"]
    assert actual.dtype == expected.dtype == np.float32
    apart = np.abs(actual - expected)
    assert apart.max() < WRONG_NAT
    assert (apart > PARITY_NAT).mean() <= NEAR_TIES


def test_beams_are_items_best_first_with_the_scores_the_scoring_form_gives(serving: TensorRtRunner, scoring: TensorRtRunner) -> None:
    inputs = batch_of(5, 33)
    found = serving(inputs)
    assert found["sids"].shape == (5, BEAM, 3)
    assert found["sids"].dtype == np.int64
    assert (np.diff(found["scores"], axis=1) <= 0).all()
    again = scoring(inputs | {"sids": found["sids"]})["log_probabilities"].sum(-1)
    np.testing.assert_allclose(found["scores"], again, rtol=0, atol=PARITY_NAT)


@pytest.mark.parametrize("context", [1, 2, 3, 4, 5, 7, 8, 9, 17])
def test_requests_do_not_mix(serving: TensorRtRunner, context: int) -> None:
    """However short all contexts of a batch are, a request gets what it gets at another place, the same bits every time."""
    inputs = batch_of(BATCH, context)
    expected = serving(inputs)
    order = np.random.default_rng(0).permutation(BATCH)
    moved = {name: array[order] for name, array in expected.items()}
    for _ in range(100):
        assert_same_bits(serving(inputs), expected)
        assert_same_bits(serving({name: array[order] for name, array in inputs.items()}), moved)


def test_what_padding_holds_changes_nothing(serving: TensorRtRunner) -> None:
    zeros = serving(batch_of(BATCH, CONTEXT, padding=0.0))
    for padding in (np.nan, np.inf, 6e4):
        assert_same_bits(serving(batch_of(BATCH, CONTEXT, padding=padding)), zeros)


def test_a_request_of_nan_leaves_its_neighbors_alone(serving: TensorRtRunner) -> None:
    inputs = batch_of(BATCH, CONTEXT)
    expected = serving(inputs)
    inputs["features"][7] = np.nan
    actual = serving(inputs)
    assert_same_bits(actual, expected, rows=np.arange(BATCH) != 7)
    assert ((actual["sids"][7] >= 0) & (actual["sids"][7] < CODEBOOK)).all()


def test_a_thousand_runs_give_the_same_bits(serving: TensorRtRunner) -> None:
    inputs = batch_of(BATCH, CONTEXT)
    expected = serving(inputs)  # plain; captured at the second run, replayed from the third on
    for _ in range(1000):
        assert_same_bits(serving(inputs), expected)


def test_threads_get_their_own_answers(plan_of: Callable[[str], Path]) -> None:
    runner = TensorRtRunner.load(plan_of("serving"), executions=3)
    batches = [batch_of(1 + seed % 5, 8 + 4 * (seed % 3), seed=seed) for seed in range(12)]
    expected = [runner(batch) for batch in batches]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            for actual, wanted in zip(pool.map(runner, batches), expected, strict=True):
                assert_same_bits(actual, wanted)


def test_batches_may_wait_to_be_fetched(serving: TensorRtRunner) -> None:
    batches = [batch_of(4, 16, seed=seed) for seed in range(10)]
    expected = [serving(batch) for batch in batches]
    pending = [serving.submit(batch) for batch in batches]
    for batch in batches:
        batch["features"][:] = 0  # an array may change once it was submitted
    for waiting, wanted in reversed(list(zip(pending, expected, strict=True))):
        assert_same_bits(waiting.result(), wanted)
        assert waiting.done()


def test_shapes_may_change_all_the_time(plan_of: Callable[[str], Path]) -> None:
    runner = TensorRtRunner.load(plan_of("serving"), graphs=2)  # so few that graphs give way to each other
    batches = [batch_of(batch, context) for batch in (1, 3, 32) for context in (1, 17, 64)]
    plain = TensorRtRunner.load(plan_of("serving"), graphs=0)
    expected = [plain(batch) for batch in batches]
    for order in (1, -1, 1, 1, -1):
        for batch, wanted in list(zip(batches, expected, strict=True))[::order]:
            for _ in range(3):
                assert_same_bits(runner(batch), wanted)


@pytest.mark.parametrize("byte", [0x00, 0x42, 0xFF])
def test_what_scratch_memory_held_before_changes_nothing(serving: TensorRtRunner, byte: int) -> None:
    """0xFFFF is NaN in FP16. Contexts of one token leave most requests of a batch without any."""
    batches = [batch_of(*shape) for shape in ((1, 1), (3, 1), (3, 17), (32, 64))]
    expected = [serving(batch) for batch in batches]
    slot = serving._slots.get()
    slot._scratch.fill_(byte)
    torch.cuda.synchronize()
    serving._slots.put(slot)
    for batch, wanted in zip(batches, expected, strict=True):
        assert_same_bits(serving(batch), wanted)


@pytest.fixture
def on_gpu() -> Callable[[Arrays], dict[str, torch.Tensor]]:
    return lambda arrays: {name: torch.from_numpy(array).cuda() for name, array in arrays.items()}


def test_what_comes_from_the_gpu_stays_there(serving: TensorRtRunner, on_gpu: Callable[[Arrays], dict[str, torch.Tensor]]) -> None:
    inputs = batch_of(5, 20)
    expected = serving(inputs)
    for _ in range(4):
        actual = serving(on_gpu(inputs))
        assert all(tensor.is_cuda for tensor in actual.values())
        assert_same_bits({name: tensor.cpu() for name, tensor in actual.items()}, expected)


def test_anything_that_speaks_dlpack_is_taken(serving: TensorRtRunner, on_gpu: Callable[[Arrays], dict[str, torch.Tensor]]) -> None:
    class Foreign:
        def __init__(self, tensor: torch.Tensor) -> None:
            self.tensor = tensor

        def __dlpack__(self, **options: Any) -> Any:
            return self.tensor.__dlpack__(**options)

        def __dlpack_device__(self) -> Any:
            return self.tensor.__dlpack_device__()

    inputs = batch_of(2, 8)
    expected = serving(inputs)
    actual = serving({name: Foreign(tensor) for name, tensor in on_gpu(inputs).items()})
    assert_same_bits({name: tensor.cpu() for name, tensor in actual.items()}, expected)


def test_a_warm_runner_answers_from_its_graphs(plan_of: Callable[[str], Path]) -> None:
    runner, cold = TensorRtRunner.load(plan_of("serving"), executions=2), TensorRtRunner.load(plan_of("serving"), graphs=0)
    runner.warm_up(4, 16)
    slots = [runner._slots.get() for _ in range(2)]
    assert [slot.graphs for slot in slots] == [1, 1]
    for slot in slots:
        runner._slots.put(slot)
    inputs = batch_of(4, 16)
    expected = cold(inputs)
    for _ in range(4):
        assert_same_bits(runner(inputs), expected)


def test_a_capture_that_breaks_costs_the_graph_alone(
    plan_of: Callable[[str], Path], on_gpu: Callable[[Arrays], dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The batch has its items, memory that a second stream has used is reused, and the shape is captured another time."""
    runner, inputs = TensorRtRunner.load(plan_of("serving")), on_gpu(batch_of(5, 20))
    expected = TensorRtRunner.load(plan_of("serving"), graphs=0)(inputs)
    enqueue, broken = Execution.enqueue, []

    def enqueue_and_wait(self: Execution, stream: int) -> None:
        enqueue(self, stream)
        if torch.cuda.is_current_stream_capturing():
            broken.append(True)
            torch.cuda.synchronize()

    def active_bytes() -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.memory_stats()["active_bytes.all.current"])

    def assert_right(actual: Mapping[str, torch.Tensor]) -> None:
        assert_same_bits({name: tensor.cpu() for name, tensor in actual.items()}, {name: t.cpu() for name, t in expected.items()})

    with monkeypatch.context() as breaking:
        breaking.setattr(Execution, "enqueue", enqueue_and_wait)
        for _ in range(2):
            assert_right(runner(inputs))
    assert (broken, runner.graphs) == ([True], 0)
    before = active_bytes()
    for _ in range(50):
        assert_right(runner({name: tensor.clone() for name, tensor in inputs.items()}))
    assert runner.graphs == 1
    assert active_bytes() < before + 10 * sum(tensor.nbytes for tensor in inputs.values())


@pytest.mark.parametrize(("batch", "context"), [(BATCH + 1, CONTEXT), (1, CONTEXT + 1)])
def test_a_request_beyond_the_profile_names_its_limits(serving: TensorRtRunner, batch: int, context: int) -> None:
    with pytest.raises(RequestError, match="beyond every profile") as caught:
        serving(batch_of(batch, context))
    assert f"[{BATCH}, {CONTEXT}, {CONFIG.feature_width}]" in caught.value.where
    serving(batch_of(1, 1))  # and the runner goes on


def test_a_wrong_type_is_refused(serving: TensorRtRunner) -> None:
    inputs = batch_of(1, 4)
    with pytest.raises(RequestError, match="is float32"):
        serving(inputs | {"features": inputs["features"].astype(np.float32)})


@pytest.fixture
def no_memory() -> Iterator[None]:
    """PyTorch may take next to nothing of the GPU."""
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(1e-7)
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


@pytest.mark.usefixtures("no_memory")
def test_exhausted_memory_is_a_typed_error(plan_of: Callable[[str], Path]) -> None:
    with pytest.raises(GpuError, match="memory is exhausted") as caught:
        TensorRtRunner.load(plan_of("serving"), executions=64)
    assert "fewer executions" in caught.value.hint


def test_a_truncated_plan_whose_record_was_made_to_fit_is_refused(plan_of: Callable[[str], Path], tmp_path: Path) -> None:
    source = plan_of("serving")
    plan = tmp_path / "plans" / source.name
    plan.parent.mkdir()
    plan.write_bytes(source.read_bytes()[: source.stat().st_size // 2])
    record = PlanRecord.model_validate(read_json(record_path(source)))
    changed = record.model_copy(update={"sha256": sha256(plan), "bytes": plan.stat().st_size})
    write_json(record_path(plan), changed.model_dump(mode="json"))
    with pytest.raises(ArtifactError, match="TensorRT cannot load the plan"):
        TensorRtRunner.load(plan)


def test_a_plan_not_seen_running_says_so(plan_of: Callable[[str], Path], caplog: pytest.LogCaptureFixture) -> None:
    TensorRtRunner.load(plan_of("serving"))
    assert "not validated" in caplog.text
