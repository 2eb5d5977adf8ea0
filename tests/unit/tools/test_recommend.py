"""Items for a request file: the same as the graph gives, whatever the batch size; bad input leaves no file."""

from __future__ import annotations

import io
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.core.recipe import load_recipe
from onerec_trt.models.requests import MAX_CONTEXT, Requests, offsets_of, write_requests
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.tools import cli, recommend
from onerec_trt.tools.pipeline import reference_job_of
from onerec_trt.tools.recommend import Recommendations, table
from onerec_trt.validation.fp32_reference import heldout_requests
from rich.console import Console

BEAM, REQUESTS = 16, 64  # of the finished world
PROFILES = (
    {"features": ((1, 2, 24), (4, 4, 24), (8, 4, 24)), "lengths": ((1, 3), (4, 3), (8, 3))},
    {"features": ((1, 2, 24), (2, 16, 24), (2, 16, 24)), "lengths": ((1, 3), (2, 3), (2, 3))},
)


@pytest.fixture(scope="module")
def model(finished_world: Path) -> Path:
    return finished_world / "out" / "fp16" / "exported" / "model.onnx"


@pytest.fixture(scope="module")
def heldout(finished_world: Path) -> Requests:
    return heldout_requests(reference_job_of(load_recipe(finished_world / "fp16.yaml")))


def test_items_are_those_of_the_graph_best_first(model: Path, finished_world: Path, heldout: Requests, tmp_path: Path) -> None:
    found = recommend.recommend(model, finished_world / "heldout.parquet", tmp_path / "items.parquet", batch_size=7)
    assert (found.engine, found.requests, found.items_per_request, found.batch_size) == ("onnxruntime", REQUESTS, BEAM, 7)
    items = pq.read_table(tmp_path / "items.parquet")
    assert items.schema == pa.schema(
        [("request", pa.string()), ("rank", pa.int32()), *((f"sid_{n}", pa.int32()) for n in (1, 2, 3)), ("score", pa.float32())]
    )
    columns: dict[str, Any] = {name: items.column(name).to_numpy().reshape(REQUESTS, BEAM) for name in items.column_names}
    assert columns["request"][:, 0].tolist() == heldout.ids
    assert (columns["request"] == columns["request"][:, :1]).all()
    assert (columns["rank"] == np.arange(1, BEAM + 1)).all()
    assert (np.diff(columns["score"], axis=1) <= 0).all()
    batch = heldout.batch(range(7, 14))
    runner = OnnxRuntimeRunner(model, threads=1)
    expected = runner({"features": batch.features_BSF.half().numpy(), "lengths": batch.lengths_B3.numpy()})
    np.testing.assert_array_equal(np.stack([columns[f"sid_{n}"][7:14] for n in (1, 2, 3)], -1), expected["sids"])
    np.testing.assert_array_equal(columns["score"][7:14], expected["scores"])


def test_only_the_first_requests_are_taken(model: Path, finished_world: Path, heldout: Requests, tmp_path: Path) -> None:
    found = recommend.recommend(model, finished_world / "heldout.parquet", tmp_path / "items.parquet", limit=2)
    assert (found.requests, found.batch_size) == (2, recommend.DEFAULT_BATCH)
    items = pq.read_table(tmp_path / "items.parquet")
    assert set(items.column("request").to_pylist()) == set(heldout.ids[:2])
    first = items.slice(0, 1).to_pylist()[0]
    assert found.first[0].model_dump() == {
        "request": heldout.ids[0],
        "rank": 1,
        "sid": tuple(first[f"sid_{n}"] for n in (1, 2, 3)),
        "score": first["score"],
        "items": None,
    }
    assert [(item.request, item.rank) for item in found.first] == [(name, rank) for name in heldout.ids[:2] for rank in (1, 2, 3)]


def test_requests_need_no_targets(model: Path, heldout: Requests, tmp_path: Path) -> None:
    write_requests(tmp_path / "requests.parquet", replace(heldout.select(slice(3)), targets_n3=None))
    assert recommend.recommend(model, tmp_path / "requests.parquet", tmp_path / "items.parquet").requests == 3


def _long(tokens: int, width: int = 24) -> Requests:
    lengths = np.array([[1, 0, 0], [0, 0, tokens]])
    offsets = offsets_of(lengths)
    return Requests(["short", "long"], np.zeros((offsets[-1], width), np.float32), offsets, lengths)


@pytest.mark.parametrize(
    ("requests", "message"),
    [
        (_long(MAX_CONTEXT + 1), f"the context of request long has {MAX_CONTEXT + 1} tokens, at most {MAX_CONTEXT} fit"),
        (_long(2, width=25), "a token has 25 features, the model takes 24"),
    ],
)
def test_requests_that_the_graph_does_not_take(model: Path, tmp_path: Path, requests: Requests, message: str) -> None:
    write_requests(tmp_path / "requests.parquet", requests)
    with pytest.raises(RequestError, match=message):
        recommend.recommend(model, tmp_path / "requests.parquet", tmp_path / "items.parquet")
    assert not (tmp_path / "items.parquet").exists()


class Plan:
    """Stands in for a plan's runner: two profiles, every item is 0."""

    def __init__(self, model: Path) -> None:
        self.io = OnnxRuntimeRunner(model, threads=1).io
        self.engine = SimpleNamespace(profiles=PROFILES)
        self.batches: list[int] = []

    def __call__(self, inputs: Any) -> dict[str, Any]:
        self.batches.append(len(inputs["lengths"]))
        return {"sids": np.zeros((self.batches[-1], BEAM, 3), np.int64), "scores": np.zeros((self.batches[-1], BEAM), np.float32)}


@pytest.fixture
def plan(model: Path, monkeypatch: pytest.MonkeyPatch) -> Plan:
    plan = Plan(model)

    class Runner(Plan):
        load = staticmethod(lambda path, trust: plan)

    plan.__class__ = Runner
    monkeypatch.setattr(recommend, "TensorRtRunner", Runner)
    return plan


@pytest.mark.parametrize(("tokens", "batch"), [(4, 8), (5, 2), (16, 2)])
def test_a_plan_gets_the_largest_batch_it_takes_with_the_longest_context(plan: Plan, tmp_path: Path, tokens: int, batch: int) -> None:
    write_requests(tmp_path / "requests.parquet", _long(tokens))
    found = recommend.recommend(Path("a.plan"), tmp_path / "requests.parquet", tmp_path / "items.parquet")
    assert (found.engine, found.batch_size) == ("tensorrt", batch)
    assert plan.batches == [2]


def test_a_request_longer_than_a_plan_takes_is_named(plan: Plan, tmp_path: Path) -> None:
    write_requests(tmp_path / "requests.parquet", _long(17))
    with pytest.raises(RequestError, match="request long has 17 tokens, at most 16 fit"):
        recommend.recommend(Path("a.plan"), tmp_path / "requests.parquet", tmp_path / "items.parquet")
    assert plan.batches == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("scoring.onnx", "the graph has no found_items"),
        ("export.json", "neither a plan nor an ONNX file"),
        ("missing.onnx", "cannot load the graph"),
        ("missing.plan", "plan not found"),
    ],
)
def test_what_finds_no_items(model: Path, finished_world: Path, tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        recommend.recommend(model.with_name(name), finished_world / "heldout.parquet", tmp_path / "items.parquet")
    assert not (tmp_path / "items.parquet").exists()


@pytest.mark.parametrize("as_json", [False, True])
def test_the_command(
    model: Path, finished_world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], as_json: bool
) -> None:
    out = tmp_path / "items.parquet"
    words = ["recommend", str(model), str(finished_world / "heldout.parquet"), "--out", str(out), "--limit", "3", "--batch-size", "2"]
    monkeypatch.setattr(sys, "argv", ["onerec-trt", *words, *(["--json"] if as_json else [])])
    with pytest.raises(SystemExit) as ending:
        cli.main()
    assert ending.value.code in (0, None)
    assert out.is_file()
    printed = capsys.readouterr().out
    if as_json:
        assert Recommendations.model_validate(json.loads(printed)).requests == 3
    else:
        assert "semantic ID" in printed


def test_the_table_shows_request_rank_and_item() -> None:
    item = recommend.Item(request="[bold]u1[/bold]", rank=1, sid=(3, 1, 4), score=-2.5)
    found = Recommendations(engine="tensorrt", requests=9, items_per_request=512, batch_size=8, out="items.parquet", first=[item])
    console = Console(file=io.StringIO(), width=80)
    console.print(table(found))
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert "512 items for each of 9 requests in items.parquet" in text
    assert all(part in text for part in ("[bold]u1[/bold]", "3 1 4", "-2.500"))
