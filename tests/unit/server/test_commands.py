"""The commands around a repository: versions and how to serve them, measured times, inputs for perf_analyzer."""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.arrays import Array
from onerec_trt.core.errors import ArtifactError, RequestError
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays
from onerec_trt.models.requests import Requests, offsets_of, write_requests
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.server.repository.add import Options, add_version
from onerec_trt.server.repository.model_config import read_config
from onerec_trt.server.repository.store import Repository
from onerec_trt.tools import cli
from onerec_trt.tools.serving.batch_times import measure
from onerec_trt.tools.serving.perf_inputs import write_inputs

from .plans import prove, write_plan

WIDTH = 6  # of the tiny graph; plans of tests have 64


@pytest.fixture(scope="module")
def export(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "exported", 0)


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run the command line in this process; exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["onerec-trt", *map(str, arguments)])
        code = 0
        try:
            cli.main()
        except SystemExit as ending:
            code = int(ending.code or 0)
        return code, *capsys.readouterr()

    return run


def test_plans_are_added_promoted_and_rolled_back(call: Any, tmp_path: Path) -> None:
    plan, repository = prove(write_plan(tmp_path / "plans")), tmp_path / "repository"
    code, out, _ = call("repository", plan, plan, "--out", repository, "--json")
    found = json.loads(out)
    assert code == 0
    assert [(each["version"], each["flavor"], each["served"]) for each in found["versions"]] == [
        (1, "tensorrt", True),
        (2, "tensorrt", False),
    ]
    assert found["versions"][0]["server_releases"] == ["24.11"]
    assert "--backend-config=tensorrt,version-compatible=true --load-model=onerec" in found["launch"]
    assert call("repository", "--out", repository, "--promote", "newest")[0] == 0
    assert Repository(repository).promoted("onerec") == (2, 1)
    assert call("repository", "--out", repository, "--rollback")[0] == 0
    code, out, _ = call("repository", "--out", repository)
    assert Repository(repository).promoted("onerec") == (1,)
    assert "24.11" in out
    assert f"serve it: onerec-trt serve {repository}" in out


def test_a_model_that_follows_a_catalogue_asks_for_one_until_it_has_it(call: Any, tmp_path: Path) -> None:
    io = item_serving_io(64, 8, ItemSizes(codebook=9, items=20, excluded=4, classes=5))
    plan, repository = prove(write_plan(tmp_path / "plans", io=io)), tmp_path / "repository"
    items = CatalogueItems(np.arange(3), np.eye(3, dtype=np.int64), np.zeros(3, np.uint64))
    write_index(index := tmp_path / "items.index", 9, index_arrays(items, 9, 5))
    asked = "onerec follows a catalogue, and has none: add one with --catalogue ITEMS.index"
    assert asked in call("repository", plan, "--out", repository, "--flavor", "python")[1]
    out = call("repository", "--out", repository, "--catalogue", index)[1]
    assert f"catalogue of onerec: {ItemIndex.load(index).digest}, 0 earlier ones" in out
    assert "has none" not in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--promote", "last"], "not a version: 'last'"),
        (["--promote", "7"], "the model 'onerec' has no version 7"),
        (["--rollback", "--promote", "1"], "--rollback goes with neither --promote nor new plans"),
        (["PLAN", "--parameter", "cuda_graphs"], "not a setting: 'cuda_graphs'"),
        (["--name", "other"], "the repository holds no model 'other'"),
        (["--name", "other", "--promote", "newest"], "the model 'other' has no version 1"),
        (["--name", "other", "--rollback-catalogue"], "the repository holds no model 'other'"),
    ],
)
def test_wrong_wishes_change_nothing(call: Any, tmp_path: Path, arguments: list[str], said: str) -> None:
    plan, repository = prove(write_plan(tmp_path / "plans")), tmp_path / "repository"
    call("repository", plan, "--out", repository)
    before = {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()}
    code, out, err = call("repository", *[str(plan) if word == "PLAN" else word for word in arguments], "--out", repository)
    assert (code, out) == (1, "")
    assert said in err
    assert {path: path.read_bytes() for path in repository.rglob("*") if path.is_file()} == before


def test_serving_without_a_server_says_so(call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repository = tmp_path / "repository"
    call("repository", prove(write_plan(tmp_path / "plans")), "--out", repository)
    monkeypatch.setenv("PATH", "")
    code, _, err = call("serve", repository)
    assert code == 1
    assert "Triton Inference Server is not installed" in err


def test_batch_times_are_what_batching_is_set_by(export: Path, tmp_path: Path) -> None:
    times = tmp_path / "times.json"
    measured = measure(export / "model.onnx", times, 8, [4, 1, 2], 3)
    assert list(measured.milliseconds) == [1, 2, 4]
    assert all(milliseconds > 0 for milliseconds in measured.milliseconds.values())
    described = add_version(Repository(tmp_path / "repository"), export, Options("python", times=times))
    assert described.batching.why.startswith("measured with contexts of 8")
    with pytest.raises(ArtifactError, match="neither a plan nor an ONNX file"):
        measure(export, times, 8, [1, 2], 3)
    with pytest.raises(ArtifactError, match="would replace a file that is not a result of this command"):
        measure(export / "model.onnx", export / "record.json", 8, [1, 2], 3)


def requests(tmp_path: Path, width: int, *tokens: int) -> tuple[Path, Requests]:
    lengths_n3 = np.array([[1, 0, count - 1] for count in tokens])
    values_NF = np.random.default_rng(0).standard_normal((int(lengths_n3.sum()), width)).astype(np.float32)
    made = Requests([f"r{row}" for row in range(len(tokens))], values_NF, offsets_of(lengths_n3), lengths_n3)
    write_requests(tmp_path / "requests.parquet", made)
    return tmp_path / "requests.parquet", made


def as_perf_analyzer_reads(path: Path, config: Any) -> list[dict[str, Array]]:
    """The steps of a file, by the rules of perf_analyzer's docs/input_data.md and src/data_loader.cc.

    `data` is a list of steps. A step names every input of the model that is not optional, and no other. A tensor with a shape has
    its content beside it; in base64 the content has exactly as many bytes as shape and data type say. A shape has as many axes as
    the configuration, and its sizes where that is not -1.
    """
    dtypes = {"TYPE_FP16": "<f2", "TYPE_INT64": "<i8"}
    names = {type_.number: type_.name for type_ in type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values}
    wanted = {tensor.name: tensor for tensor in config.input}
    found = []
    for step in json.loads(path.read_text())["data"]:
        assert {name for name, tensor in wanted.items() if not tensor.optional} <= step.keys() <= wanted.keys()
        arrays = {}
        for name, tensor in step.items():
            assert tensor.keys() == {"content", "shape"}
            assert all(dim in (-1, size) for size, dim in zip(tensor["shape"], wanted[name].dims, strict=True))
            content = base64.b64decode(tensor["content"]["b64"], validate=True)
            arrays[name] = np.frombuffer(content, dtypes[names[wanted[name].data_type]]).reshape(tensor["shape"])
        found.append(arrays)
    return found


def test_inputs_for_perf_analyzer_hold_the_requests(export: Path, tmp_path: Path) -> None:
    path, made = requests(tmp_path, WIDTH, 3, 5)
    add_version(Repository(tmp_path / "repository"), export, Options("python"))
    assert write_inputs(tmp_path / "repository", "onerec", path, tmp_path / "inputs.json", None) == 2
    config = read_config(Repository(tmp_path / "repository").config_path("onerec"))
    first, second = as_perf_analyzer_reads(tmp_path / "inputs.json", config)
    assert (first["features"].shape, second["features"].shape, first["lengths"].shape) == ((3, WIDTH), (5, WIDTH), (3,))
    np.testing.assert_array_equal(second["features"], made.values_NF[3:].astype(np.float16))
    assert second["lengths"].tolist() == [1, 0, 4]


def test_inputs_for_the_stock_backend_are_filled_up_to_buckets(tmp_path: Path) -> None:
    path, _ = requests(tmp_path, 64, 3, 300)
    add_version(Repository(tmp_path / "repository"), prove(write_plan(tmp_path / "plans")), Options("tensorrt"))
    write_inputs(tmp_path / "repository", "onerec", path, tmp_path / "inputs.json", None)
    data = json.loads((tmp_path / "inputs.json").read_text())["data"]
    assert [entry["features"]["shape"] for entry in data] == [[256, 64], [512, 64]]
    too_long, _ = requests(tmp_path, 64, 3073)
    with pytest.raises(RequestError):
        write_inputs(tmp_path / "repository", "onerec", too_long, tmp_path / "inputs.json", None)
