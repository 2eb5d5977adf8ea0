"""A measurement of a served model, at tiny scale on a CPU: what is measured is all there, and the summary follows from it."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.export.contracts import serving_io
from onerec_trt.tools.serving import load as load_module
from onerec_trt.tools.serving.load import Load, LoadResult, loop_rate
from onerec_trt.tools.serving.page import payload_table, table
from onerec_trt.tools.serving.payload import CHECKED, FROM_GPU, LAID_OUT, STRAIGHT_FROM_GPU, STRAIGHT_TO_GPU, TO_GPU
from onerec_trt.tools.serving.result import Bare, MeasuredLoad, ServingResult, saturating, summarize
from onerec_trt.tools.serving.run import Extent, measure_serving

ROOT = Path(__file__).parents[3]
SERVER = ROOT / ".venv-server"
TINY = Extent(context=9, mixed=(3, 9, 16), batches=(1, 4), samples=3, clients=2, seconds=0.7, arrival_seconds=1.0, gpus=2)


def test_a_served_model_beside_the_bare_runtime(make_export: Callable[[Path, int], Path], tmp_path: Path) -> None:
    export, out = make_export(tmp_path / "exported", 0), tmp_path / "cpu-serving.json"
    said: list[str] = []
    extent = replace(TINY, parameters={"cuda_graphs": "0"}, any_queue=True)
    result = measure_serving(export / "model.onnx", SERVER, out, extent, said.append, "abc")
    assert ServingResult.model_validate_json(out.read_text()) == result
    assert [len(samples) for samples in result.times_ms.values()] == [3, 3]
    assert result.sustained_ms is not None
    assert len(result.sustained_ms) > 3, "for as long as a load, which is more than first samples"
    assert result.payload_ms is not None
    assert {step: len(samples) for step, samples in result.payload_ms.items()} == {CHECKED: 3, LAID_OUT: 3}, "there is no GPU"
    assert said[-2] == payload_table(result.payload_ms)
    closed = [load for load in result.loads if load.rate is None]
    assert [load.shared_memory for load in closed] == [False] * 4 + [True] + [False] * 2
    assert [(load.instances, load.clients, load.batch, load.contexts) for load in closed if not load.shared_memory] == [
        (1, 2, 1, (9,)),
        (1, 4, 1, (9,)),
        (2, 2, 1, (9,)),
        (2, 4, 1, (9,)),
        (2, 4, 4, (9,)),
        (2, 4, 1, (3, 9, 16)),
    ]
    assert all(load.result.failed == 0 and load.gpu_busy == [] for load in result.loads)
    for load in result.loads:
        assert load.server is not None
        assert load.server.requests >= len(load.result.samples_ms)
        assert sum(size * each.batches for size, each in load.server.by_size.items()) == load.server.requests * load.batch
        assert all(each.infer_ms > 0 for each in load.server.by_size.values())
    assert result.loads[-1].seconds == 1.0
    assert result.parameters == {"cuda_graphs": "0"}
    assert result.batching.endswith("; any queue")
    assert result.environment["commit"] == "abc"
    assert result.environment["server"].startswith("2.")
    assert result.summary is not None
    assert result.summary.two_gpu_scaling is None
    assert said[-1].startswith("summary: ")
    with pytest.raises(ArtifactError, match="not a result of this command"):
        measure_serving(export / "model.onnx", SERVER, export / "record.json", TINY)


@pytest.fixture
def of_a_gpu() -> ServingResult:
    times, sustained = {32: [48.0] * 3}, [50.0] * 3
    loads = [load(608.0).model_copy(update={"name": "one", "gpu_busy": [0.97]}), load(624.0, shm=True), load(480.0, rate=486.0)]
    return ServingResult(
        environment={},
        model={},
        context=512,
        times_ms=times,
        sustained_ms=sustained,
        batching="",
        loads=loads,
        summary=summarize(times, sustained, loads),
    )


def test_the_table_has_rows_for_the_bare_runtime_and_each_load(of_a_gpu: ServingResult) -> None:
    lines = table(of_a_gpu).splitlines()
    assert lines[2] == "| bare runtime, batches of 32, first samples | 667 | 48.0 | | |"
    assert lines[3] == "| bare runtime, batches of 32, sustained | 640 | 50.0 | | |"
    assert lines[4] == "| one | 608 | 30.0 | 60.0 | 97 % |"
    assert len(lines) == 4 + len(of_a_gpu.loads)


def test_the_payload_s_steps_add_up_and_other_ways_stand_below() -> None:
    instead = {STRAIGHT_TO_GPU: [3.0], STRAIGHT_FROM_GPU: [0.25]}
    way = {TO_GPU: [0.5, 0.25, 0.75], CHECKED: [1.0], LAID_OUT: [0.25], FROM_GPU: [0.125]}
    rows = [line.strip("| ").split(" | ") for line in payload_table({**instead, **way}).splitlines()[2:]]
    assert [name for name, _ in rows] == [CHECKED, LAID_OUT, TO_GPU, FROM_GPU, "sum", STRAIGHT_TO_GPU, STRAIGHT_FROM_GPU]
    assert [figure for _, figure in rows] == ["1.00", "0.25", "0.50", "0.12", "1.88", "3.00", "0.25"]


def load(
    requests_per_s: float, *, gpus: int = 1, rate: float | None = None, batch: int = 1, p99_ms: float = 60.0, shm: bool = False
) -> MeasuredLoad:
    seen = LoadResult(requests_per_s=requests_per_s, p50_ms=30.0, p99_ms=p99_ms, failed=0, samples_ms=[1.0, 2.0])
    return MeasuredLoad(
        name="",
        instances=2,
        gpus=gpus,
        clients=64,
        rate=rate,
        contexts=(512,),
        batch=batch,
        shared_memory=shm,
        seconds=1.0,
        gpu_busy=[],
        result=seen,
    )


def test_the_summary_compares_the_highest_rate_with_the_bare_runtime() -> None:
    times, sustained = {1: [6.0, 6.0, 7.0], 32: [40.0, 38.0, 41.0]}, [50.0, 49.0, 51.0]
    loads = [
        load(500.0),
        load(608.0),
        load(624.0, shm=True),
        load(630.0, batch=32),
        load(480.0, rate=486.0, p99_ms=80.0),
        load(1200.0, gpus=2),
    ]
    summary = summarize(times, sustained, loads)
    assert summarize(times, sustained, loads[:3]) is None
    assert summary is not None
    assert summary.bare is not None
    assert saturating(loads) is loads[1]
    assert (summary.bare.first.batch_ms, summary.bare.first.requests_per_s) == (40.0, 800.0)
    assert (summary.bare.sustained.batch_ms, summary.bare.sustained.requests_per_s) == (50.0, 640.0)
    assert (summary.bare_batch_ms, summary.bare_requests_per_s) == (50.0, 640.0), "losses are those against the sustained rate"
    assert summary.overhead_batch_32 == pytest.approx(0.05)
    assert summary.overhead_shared_memory == pytest.approx(0.025)
    assert (summary.p50_ms, summary.p99_ms, summary.p99_over_batch) == (30.0, 80.0, 2.0)
    assert summary.two_gpu_scaling == pytest.approx(1200 / 608)


def test_sustained_is_the_mean_of_all_batches() -> None:
    summary = summarize({32: [40.0] * 3}, [40.0, 40.0, 70.0], [load(600.0), load(600.0, shm=True), load(480.0, rate=480.0)])
    assert summary is not None
    assert summary.bare_batch_ms == 50.0, "batches over the time that they took"


@pytest.mark.parametrize("begin", [0.0, 0.01, 0.19])
def test_the_rate_of_closed_loops_does_not_depend_on_how_many_batches_end_in_time(begin: float) -> None:
    every, clients, seconds = 0.0478, 128, 4.0  # batches of 32, whose clients ask again at once
    ends = [every * batch for batch in range(200)]
    loops = [[end for end in ends[client % 4 :: 4] if begin <= end <= begin + seconds] for client in range(clients)]
    assert sum(loop_rate(answered, seconds) for answered in loops) == pytest.approx(32 / every, rel=1e-9)
    assert sum(map(len, loops)) / seconds != pytest.approx(32 / every, rel=0.003), "a count would be of whole batches"


@pytest.mark.parametrize(("answered", "rate"), [([], 0.0), ([1.5], 0.5), ([1.0, 1.5], 2.0)])
def test_a_loop_with_few_answers_has_a_rate(answered: list[float], rate: float) -> None:
    assert loop_rate(answered, 2.0) == rate


class Confused:
    """A client that no server has answered, and that fails by itself."""

    io = serving_io(6, 4)

    def recommend_batch(self, *arguments: object) -> None:
        raise KeyError("scores")


def test_what_goes_wrong_in_a_client_at_random_arrivals_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "Client", lambda *arguments, **options: Confused())
    monkeypatch.setattr(load_module, "_together", Mock())
    asking = load_module._Meter(Load("", "grpc", "onerec", 1, 100.0, (9,), 1, 0.2, 1), 0)
    with pytest.raises(KeyError, match="scores"):
        asking.open_loop(100.0)


def read(name: str) -> ServingResult:
    return ServingResult.model_validate_json((ROOT / "docs" / "measurements" / name).read_text())


@pytest.fixture(scope="module")
def measured() -> ServingResult:
    return read("h200-serving.json")


@pytest.fixture(scope="module")
def without_graphs() -> ServingResult:
    return read("h200-serving-without-graphs.json")


def test_a_file_without_sustained_samples_has_the_summary_of_its_first_ones() -> None:
    earlier = read("h100-serving.json")
    assert earlier.sustained_ms is None
    assert earlier.summary == summarize(earlier.times_ms, None, earlier.loads)
    assert earlier.summary is not None
    assert earlier.summary.bare is None
    assert table(earlier).splitlines()[2].startswith("| bare runtime, batches of 32, first samples |")


@pytest.mark.parametrize("name", ["h200-serving.json", "h200-serving-without-graphs.json"])
def test_the_summary_of_a_file_follows_from_its_samples(name: str) -> None:
    result = read(name)
    assert result.sustained_ms is not None
    assert result.summary == summarize(result.times_ms, result.sustained_ms, result.loads)
    assert all(load.result.failed == 0 for load in result.loads)


def rows_of_the_page() -> list[list[str]]:
    """Cells of the tables of docs/serving.md, without bold."""
    lines = (ROOT / "docs" / "serving.md").read_text().replace("**", "").splitlines()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def test_the_page_on_serving_says_what_was_measured(measured: ServingResult) -> None:
    rows = rows_of_the_page()
    assert measured.payload_ms is not None
    for line in (*table(measured).splitlines(), *payload_table(measured.payload_ms).splitlines()):
        assert [cell.strip() for cell in line.strip("|").split("|")] in rows
    medians = {batch: statistics.median(samples) for batch, samples in sorted(measured.times_ms.items())}
    assert ["requests of a batch", *map(str, medians)] in rows
    assert ["bare runtime, ms", *(f"{milliseconds:.1f}" for milliseconds in medians.values())] in rows
    assert ["requests/s", *(f"{batch / milliseconds * 1e3:.0f}" for batch, milliseconds in medians.items())] in rows


def bare_of(result: ServingResult) -> Bare:
    assert result.summary is not None
    assert result.summary.bare is not None
    return result.summary.bare


def percent(share: float, sign: str = "") -> str:
    return f"{100 * share:{sign}.1f} %"


def test_where_the_time_of_a_batch_goes_is_what_the_files_say(measured: ServingResult) -> None:
    serving, bare = (ROOT / "docs" / "serving.md").read_text(), bare_of(measured)
    one, two = measured.loads[1], saturating(measured.loads)
    assert (one.instances, two.instances, one.clients) == (1, 2, two.clients)
    waited = statistics.mean(two.result.samples_ms)
    period, alone = waited * 32 / two.clients, statistics.mean(one.result.samples_ms) * 32 / one.clients
    assert f"A served batch takes {period:.1f} ms: {two.clients} clients wait {waited:.1f} ms" in serving
    less, more = bare.sustained.batch_ms - period, period - bare.first.batch_ms
    assert f"{less:.1f} ms less than the bare runtime's sustained batch, and {more:.1f} ms more than its first samples" in serving
    idle = 1 - two.gpu_busy[0]
    assert f"In {percent(idle)} of the time NVML sees no kernel, which would be {idle * period:.1f} ms of every batch" in serving
    assert f"alone takes {alone:.1f} ms for a batch, and one of two comes round every {2 * period:.1f} ms" in serving
    assert f"waits some {2 * period - alone:.0f} ms for its turn" in serving
    assert one.server is not None
    full = one.server.by_size[32]
    counted = f"{full.input_ms:.1f} before the backend, {full.infer_ms:.1f} in it and {full.output_ms:.1f} behind it"
    assert f"Of those {alone:.1f} ms the server counts {counted}" in serving
    before = read("h100-serving.json").summary
    assert before is not None
    answered = f"answered {before.requests_per_s:.0f} requests/s where the bare runtime's first samples gave"
    assert f"{answered} {before.bare_requests_per_s:.0f}" in serving
    assert f"its p99 was {before.p99_ms:.1f} ms, {before.p99_over_batch:.1f} x the time of a batch" in serving


def test_what_graphs_bring_is_what_two_files_say_each_beside_its_own_bare_runtime(
    measured: ServingResult, without_graphs: ServingResult
) -> None:
    both, rows = (measured, without_graphs), rows_of_the_page()
    assert [result.parameters for result in both] == [{}, {"cuda_graphs": "0"}]

    def loads(result: ServingResult) -> list[MeasuredLoad]:
        return [load for load in result.loads if (load.instances, load.gpus) == (2, 1)]

    def beside(result: ServingResult, load: MeasuredLoad) -> str:
        return percent(load.result.requests_per_s / bare_of(result).sustained.requests_per_s - 1, "+")

    assert ["128 clients, beside the bare runtime sustained", *(beside(result, loads(result)[1]) for result in both)] in rows
    assert ["64 clients, likewise", *(beside(result, loads(result)[0]) for result in both)] in rows
    arrivals = [loads(result)[-1] for result in both]
    firsts = [bare_of(result).first.batch_ms for result in both]
    p50, p99 = ([getattr(load.result, name) / ms for load, ms in zip(arrivals, firsts, strict=True)] for name in ("p50_ms", "p99_ms"))
    assert ["random arrivals at 80 %: p50 over a batch of 32", *(f"{each:.2f}" for each in p50)] in rows
    assert ["p99 likewise", *(f"{each:.2f}" for each in p99)] in rows
    assert ["GPU busy then", *(f"{100 * load.gpu_busy[0]:.0f} %" for load in arrivals)] in rows


def test_the_summary_stands_in_the_pages(measured: ServingResult) -> None:
    assert measured.summary is not None
    assert measured.summary.two_gpu_scaling is not None
    bare, rate = bare_of(measured), measured.summary.requests_per_s
    above, below = percent(rate / bare.sustained.requests_per_s - 1), percent(1 - rate / bare.first.requests_per_s)
    (two,) = (load.result.requests_per_s for load in measured.loads if load.gpus == 2)
    pages = ("docs/serving.md", "README.md", "docs/clusters.md", "docs/performance.md")
    serving, readme, clusters, performance = ((ROOT / page).read_text() for page in pages)
    assert f"{rate:.0f} requests/s, {rate * 3600 / 1e6:.1f} million per hour.**" in serving
    assert f"{above} above the bare runtime's sustained rate, and {below} below its first samples" in serving
    assert f"Two GPUs answer {measured.summary.two_gpu_scaling:.2f} x as many" in serving
    assert f"p99 is {measured.summary.p99_over_batch:.1f} x the time of a batch of 32" in serving
    alone = measured.loads[1].result.requests_per_s
    less = f"{100 * (1 - alone / rate):.0f} % less than two and {100 * (1 - alone / bare.sustained.requests_per_s):.0f} % less"
    assert f"One alone answers {less} than the bare runtime sustained" in serving
    assert f"{rate:.0f} requests/s over gRPC, {rate * 3600 / 1e6:.1f} million per hour; {two:.0f} on two" in readme
    assert f"{above} above the bare runtime in steady use, and {below} below its first batches" in readme
    assert f"p99 is {measured.summary.p99_ms:.1f} ms" in readme
    assert f"answered {rate:.0f} requests of 512 tokens per second with 4B-A0.5B on one H200, and {two:.0f} on two" in clusters
    gigabits = rate * measured.model["bytes_of_a_request"] * 8 / 1e9
    assert f"{rate * 3600 / 1e6:.1f} million per GPU-hour, and {gigabits:.1f} Gbit/s of payload" in clusters
    assert f"took {bare.sustained.batch_ms:.2f} ms at batch 32 sustained" in performance
    assert f"its first samples took {bare.first.batch_ms:.1f}" in performance
