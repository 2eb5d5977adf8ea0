"""Repositories: config.pbtxt as recorded, files and hashes inside, promotion, rollback, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from onerec_trt.core.artifacts import sha256, write_json
from onerec_trt.core.errors import ArtifactError, GateError
from onerec_trt.core.graph_io import GraphIO, GraphTensor
from onerec_trt.export.contracts import serving_io
from onerec_trt.runtime.signature import new_key, sign
from onerec_trt.runtime.verdict import inspect_with_verdict
from onerec_trt.server.repository.add import GRAPH_LIMITS, Options, add_version
from onerec_trt.server.repository.limits import Limits
from onerec_trt.server.repository.model_config import read_config
from onerec_trt.server.repository.releases import releases_for
from onerec_trt.server.repository.store import Repository
from onerec_trt.server.repository.version import open_version
from onerec_trt.server.triton_api import config_schema, json_format

from .plans import NESTED, prove, write_plan

GOLDEN = Path(__file__).parents[2] / "golden" / "triton"
RECORD_GOLDEN = "ONEREC_TRT_WRITE_GOLDEN"  # set it to write the files anew, then read what changed
CROSSING = (
    Limits(min_batch=1, max_batch=32, min_context=2, max_context=512),
    Limits(min_batch=1, max_batch=8, min_context=2, max_context=3072),
)


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    return Repository(tmp_path / "repository")


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    return prove(write_plan(tmp_path / "plans"))


@pytest.fixture(scope="module")
def export(make_export: Callable[[Path, int], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export(tmp_path_factory.mktemp("export") / "exported", 0)


def hold_against_golden(name: str, text: str) -> None:
    if os.environ.get(RECORD_GOLDEN):
        (GOLDEN / name).write_text(text)
    assert text == (GOLDEN / name).read_text()


def test_a_plan_for_the_stock_backend(repository: Repository, plan: Path, tmp_path: Path) -> None:
    described = add_version(repository, plan, Options("tensorrt"))
    write_json(tmp_path / "times.json", {"model_sha256": described.model_sha256, "context": 512, "milliseconds": {1: 6.4, 8: 16.3, 32: 62}})
    timed = add_version(repository, plan, Options("tensorrt", times=tmp_path / "times.json", instances=2))
    assert described.context_buckets == (*range(256, 3072, 256), 3072)
    assert (timed.resources.gpus, timed.resources.gpu_memory_bytes, timed.resources.shared_memory_bytes) == (1, 40, 0)
    repository.promote("onerec", 2)
    hold_against_golden("tensorrt.pbtxt", repository.config_path("onerec").read_text())


def test_a_plan_for_the_python_backend(repository: Repository, plan: Path) -> None:
    described = add_version(repository, plan, Options("python", parameters={"cuda_graphs": "16"}))
    assert described.context_buckets == ()
    assert described.batching.context is None
    assert (described.resources.instances, described.resources.gpu_memory_bytes) == (2, 40)
    alone = add_version(repository, plan, Options("python", instances=1))
    assert (alone.resources.instances, alone.resources.gpu_memory_bytes) == (1, 20)
    assert described.resources.shared_memory_bytes > 32 * 3072 * 64 * 2
    hold_against_golden("python.pbtxt", repository.config_path("onerec").read_text())


def test_a_graph_for_the_python_backend_on_a_cpu(repository: Repository, export: Path, add: Any) -> None:
    described = add(repository, export)
    assert (described.engine, described.resources.gpus, described.validated) == ("onnxruntime", 0, False)
    hold_against_golden("graph.pbtxt", repository.config_path("onerec").read_text())


def test_every_configuration_is_one_of_the_servers_schema() -> None:
    for path in sorted(GOLDEN.glob("*.pbtxt")):
        config = read_config(path)
        assert config.name == "onerec"
        assert not config.response_cache.enable
        assert not config.model_warmup
        assert not config.optimization.cuda.graphs


def test_a_configuration_is_the_same_in_json_as_serve_sends_it() -> None:
    """Of plans, too: instances on GPUs, profiles, batches to fill up to."""
    assert any(group.gpus for path in GOLDEN.glob("*.pbtxt") for group in read_config(path).instance_group)
    for path in sorted(GOLDEN.glob("*.pbtxt")):
        config, parsing = read_config(path), json_format()
        assert parsing.Parse(parsing.MessageToJson(config, preserving_proto_field_name=True), config_schema().ModelConfig()) == config


def test_only_a_queue_with_a_limit_has_a_policy_which_costs_the_server_its_batches_ahead(
    repository: Repository, export: Path, tmp_path: Path
) -> None:
    times, model = tmp_path / "times.json", sha256(export / "model.onnx")
    write_json(times, {"model_sha256": model, "context": 512, "milliseconds": {1: 10.0, 32: 80.0}})
    changes: tuple[dict[str, Any], ...] = ({}, {"times": times}, {"times": times, "any_queue": True})
    for version, each in enumerate(changes, 1):
        add_version(repository, export, Options("python", **each))
        repository.promote("onerec", version)
        batcher = read_config(repository.config_path("onerec")).dynamic_batching
        assert batcher.HasField("default_queue_policy") == (version == 2)
        assert batcher.default_queue_policy.max_queue_size == (400 if version == 2 else 0)


def test_record_and_verdict_travel_with_the_plan(repository: Repository, plan: Path) -> None:
    described = add_version(repository, plan, Options("tensorrt"))
    assert described.validated
    folder = repository.folder("onerec", 1)
    assert sorted(described.files) == ["model.json", "model.plan", "model.verdict.json"]
    assert inspect_with_verdict(folder / "model.plan").validated
    assert open_version(folder) == described
    (folder / "model.plan").write_bytes(b"A plan")
    with pytest.raises(ArtifactError, match="does not match the version's description"):
        open_version(folder)


def test_a_verdict_of_another_name_and_a_signature_travel_too(repository: Repository, plan: Path, tmp_path: Path) -> None:
    plan.with_suffix(".verdict.json").rename(plan.with_name("of-the-gpu.verdict.json"))
    public = new_key(tmp_path / "key")
    sign(plan, tmp_path / "key")
    described = add_version(repository, plan, Options("python", trust=(public,)))
    assert {"of-the-gpu.verdict.json", "model.signature.json"} <= described.files.keys()
    assert inspect_with_verdict(repository.folder("onerec", 1) / "model.plan").validated
    with pytest.raises(ArtifactError, match="signed by another key"):
        add_version(repository, plan, Options("python", trust=(new_key(tmp_path / "other"),)))


def test_what_cannot_be_served_is_refused_and_leaves_nothing(repository: Repository, export: Path, tmp_path: Path) -> None:
    bare = write_plan(tmp_path / "bare")
    with pytest.raises(GateError, match="the plan is not validated"):
        add_version(repository, bare, Options("tensorrt"))
    with pytest.raises(ArtifactError, match="no backend for plans of TensorRT-RTX"):
        add_version(repository, write_plan(tmp_path / "rtx", target="tensorrt-rtx"), Options("tensorrt"))
    with pytest.raises(ArtifactError, match=r"profiles 0 .* and 1 .* cross"):
        add_version(repository, write_plan(tmp_path / "crossing", CROSSING), Options("tensorrt", unvalidated=True))
    with pytest.raises(ArtifactError, match="serves plans, not exported graphs"):
        add_version(repository, export, Options("tensorrt"))
    with pytest.raises(ArtifactError, match="neither a plan nor an exported graph"):
        add_version(repository, tmp_path / "nothing.onnx", Options("python"))
    io = serving_io(64, 8)
    index = GraphTensor(name="index", role=None, dtype="int64", axes=(16,), kind="resident")
    resident = GraphIO(inputs=(*io.inputs, index), outputs=io.outputs, min_context=2)
    with pytest.raises(ArtifactError, match="no flavor binds the resident inputs index"):
        add_version(repository, write_plan(tmp_path / "resident", io=resident), Options("python", unvalidated=True))
    with pytest.raises(ArtifactError, match="this is no name of a model"):
        add_version(repository, bare, Options("python", name="a/b", unvalidated=True))
    assert not repository.path.exists()
    assert (
        add_version(repository, write_plan(tmp_path / "crossing", CROSSING), Options("python", unvalidated=True)).batching.max_batch == 32
    )


def test_promotion_and_rollback(repository: Repository, plan: Path) -> None:
    for _ in range(3):
        add_version(repository, plan, Options("tensorrt"))
    assert (repository.versions("onerec"), repository.promoted("onerec")) == ((1, 2, 3), (1,))
    with pytest.raises(ArtifactError, match="no version of 'onerec' was served before version 1"):
        repository.rollback("onerec")
    repository.promote("onerec", 3)
    repository.promote("onerec", 2)
    assert repository.promoted("onerec") == (2, 3, 1)
    assert list(read_config(repository.config_path("onerec")).version_policy.specific.versions) == [2]
    assert (repository.rollback("onerec"), repository.promoted("onerec")) == (3, (3, 1))
    with pytest.raises(ArtifactError, match="no version 7"):
        repository.promote("onerec", 7)
    assert repository.promoted("onerec") == (3, 1)


def test_a_changed_version_is_not_promoted(repository: Repository, plan: Path) -> None:
    for _ in range(2):
        add_version(repository, plan, Options("tensorrt"))
    (repository.folder("onerec", 2) / "model.json").unlink()
    with pytest.raises(ArtifactError, match="file missing"):
        repository.promote("onerec", 2)
    assert repository.promoted("onerec") == (1,)


def test_a_model_that_is_replaced_between_its_check_and_its_copy_is_refused(
    repository: Repository, plan: Path, export: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    graph = shutil.copytree(export, tmp_path / "exported") / "model.onnx"
    real = shutil.copyfile

    def replaced_before(origin: Path, target: Path) -> None:
        if origin in (plan, graph):
            origin.write_bytes(b"what a build put there")
        real(origin, target)

    monkeypatch.setattr(shutil, "copyfile", replaced_before)
    for model, flavor in ((plan, "tensorrt"), (graph, "python")):
        with pytest.raises(ArtifactError, match=f"{model.name} was changed while it was copied"):
            add_version(repository, model, Options(flavor))  # type: ignore[arg-type]
    assert repository.versions("onerec") == ()


@pytest.mark.parametrize("changes", [{"name": "../elsewhere"}, {"version": 2}])
def test_a_description_of_another_version_is_refused_before_anything_is_written(
    repository: Repository, plan: Path, changes: dict[str, Any]
) -> None:
    add_version(repository, plan, Options("tensorrt"))
    path = repository.folder("onerec", 1) / "version.json"
    write_json(path, json.loads(path.read_text()) | changes)
    for use in (repository.describe, repository.open, repository.promote):
        with pytest.raises(ArtifactError, match="the description is of version"):
            use("onerec", 1)
    assert sorted(each.name for each in repository.path.iterdir()) == ["onerec"]


@pytest.mark.parametrize("file", ["../2/model.plan", "/tmp/model.plan", "other.plan"])
def test_a_description_names_a_model_among_its_own_files(repository: Repository, plan: Path, file: str) -> None:
    add_version(repository, plan, Options("tensorrt"))
    path = repository.folder("onerec", 1) / "version.json"
    write_json(path, json.loads(path.read_text()) | {"model_file": file})
    with pytest.raises(ArtifactError, match="is none of the version's files"):
        repository.open("onerec", 1)


def test_what_is_asked_of_a_model_that_is_not_there_leaves_no_folder(repository: Repository, plan: Path) -> None:
    add_version(repository, plan, Options("tensorrt"))
    with pytest.raises(ArtifactError, match="the repository holds no model 'onrec'"):
        repository.rollback_catalogue("onrec")
    assert [each.name for each in repository.path.iterdir()] == ["onerec"]


def test_a_version_in_a_read_only_repository_is_not_set_aside_and_one_is_told_what_is_wrong_with_it(
    repository: Repository, plan: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        add_version(repository, plan, Options("tensorrt"))
    repository.promote("onerec", 2)
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(ArtifactError, match=r"(?s)it did not load\nit cannot be set aside: Read-only.*promote version 1 where"):
        repository.set_aside("onerec", 2, "it did not load")
    monkeypatch.undo()
    assert repository.promoted("onerec") == (2, 1)


def test_a_version_set_aside_is_neither_served_nor_its_number_given_again(repository: Repository, plan: Path) -> None:
    for _ in range(3):
        add_version(repository, plan, Options("tensorrt"))
    repository.promote("onerec", 2)
    repository.promote("onerec", 3)
    (repository.folder("onerec", 2) / "model.plan").write_bytes(b"changed")
    assert repository.set_aside("onerec", 3, "it did not load") == 1, "version 2 was changed, so the one before"
    assert (repository.path / "onerec" / "failed-3" / "why.txt").read_text() == "it did not load\n"
    assert add_version(repository, plan, Options("tensorrt")).version == 4
    assert repository.set_aside("onerec", 1, "nor this") is None, "there is nothing to fall back to: it stays"
    assert repository.promoted("onerec") == (1, 2)


def test_what_is_no_repository_is_said(tmp_path: Path, repository: Repository, plan: Path) -> None:
    with pytest.raises(ArtifactError, match="this is no model repository"):
        Repository(tmp_path / "nothing").models()
    add_version(repository, plan, Options("tensorrt"))
    repository.config_path("onerec").write_text("not a configuration {")
    with pytest.raises(ArtifactError, match="the model's configuration is malformed"):
        repository.promoted("onerec")
    repository.config_path("onerec").write_text('name: "onerec"')
    with pytest.raises(ArtifactError, match="does not say which versions were promoted"):
        repository.promoted("onerec")
    repository.promote("onerec", 1)
    description = repository.folder("onerec", 1) / "version.json"
    description.write_text(json.dumps({**json.loads(description.read_text()), "flavor": "other"}))
    with pytest.raises(ArtifactError, match="the version's description is malformed: flavor"):
        repository.describe("onerec", 1)


def test_releases_whose_tensorrt_fits() -> None:
    assert releases_for("10.6.0") == ("24.11",)
    assert releases_for("10.8.0.43") == ("25.01", "25.02")
    assert releases_for("10.99.0") == ()


def test_a_graphs_limits_are_those_of_the_papers_unless_given(repository: Repository, export: Path) -> None:
    assert add_version(repository, export, Options("python")).limits == (GRAPH_LIMITS,)
    assert NESTED[1].max_context == GRAPH_LIMITS.max_context
