"""Catalogues in a repository: what is served, going back, what is refused, and what an instance begins with."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError
from onerec_trt.core.recipe import ExportOptions
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays
from onerec_trt.runtime.item_index import write_index
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.server.python_backend import catalogue as catalogue_module
from onerec_trt.server.python_backend.catalogue import CatalogueAnswers
from onerec_trt.server.repository.add import Options, add_version
from onerec_trt.server.repository.catalogues import Catalogues
from onerec_trt.server.repository.model_config import read_config
from onerec_trt.server.repository.store import Repository

from .plans import prove, write_plan

CODEBOOK = 9


def catalogue(folder: Path, seed: int, codebook: int = CODEBOOK) -> Path:
    draw = np.random.default_rng(seed)
    items = CatalogueItems(draw.permutation(100)[:20], draw.integers(0, 4, (20, 3)), np.zeros(20, np.uint64))
    write_index(path := folder / f"{seed}.index", codebook, index_arrays(items, codebook))
    return path


@pytest.fixture(scope="module")
def graph(item_graph: Any) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(item_graph(CODEBOOK, 4, 200), threads=1)


def test_the_newest_is_served_and_those_before_it_can_be_served_again(graph: OnnxRuntimeRunner, tmp_path: Path) -> None:
    catalogues = Catalogues(tmp_path / "model")
    assert catalogues.served() == ()
    with pytest.raises(ArtifactError, match="no catalogue was served before"):
        catalogues.rollback(graph.io)
    digests = [catalogues.add(catalogue(tmp_path, seed), graph.io) for seed in range(7)]
    assert catalogues.served() == tuple(reversed(digests[2:])), "four of those before are kept"
    assert sorted(path.stem for path in catalogues.folder.glob("*.index")) == sorted(digests[2:])
    assert catalogues.rollback(graph.io) == digests[5]
    assert catalogues.add(tmp_path / "3.index", graph.io) == digests[3]
    assert catalogues.served() == (digests[3], digests[5], digests[4], digests[2])
    catalogues.path(digests[5]).write_bytes(b"ORTITEMS")
    with pytest.raises(ArtifactError, match="truncated"):
        catalogues.rollback(graph.io)
    with pytest.raises(ArtifactError, match="codebook of 10 tokens"):
        catalogues.add(catalogue(tmp_path, 8, CODEBOOK + 1), graph.io)
    assert catalogues.served()[0] == digests[3]
    catalogues.served_path.write_text("{}")
    with pytest.raises(ArtifactError, match="it is not said which catalogue is served"):
        catalogues.served()


def test_a_catalogue_that_the_graph_does_not_take_any_more_is_not_served_again(item_graph: Any, tmp_path: Path) -> None:
    """Another version was promoted meanwhile, and has less room."""
    large, small = (OnnxRuntimeRunner(item_graph(CODEBOOK, 4, capacity), threads=1).io for capacity in (200, 9))
    catalogues = Catalogues(tmp_path / "model")
    first, second = (catalogues.add(catalogue(tmp_path, seed), large) for seed in (1, 2))
    with pytest.raises(ArtifactError, match="the graph takes"):
        catalogues.rollback(small)
    catalogues.path(first).write_bytes(catalogues.path(second).read_bytes())
    with pytest.raises(ArtifactError, match="another catalogue than its name says"):
        catalogues.rollback(large)
    assert catalogues.served() == (second, first)


def test_an_instance_begins_with_the_newest_that_loads_and_not_without_any(graph: OnnxRuntimeRunner, tmp_path: Path) -> None:
    catalogues, told = Catalogues(tmp_path / "model"), []
    with pytest.raises(ArtifactError, match="follows a catalogue, and has none"):
        CatalogueAnswers(graph, catalogues, told.append)
    old, new = (catalogues.add(catalogue(tmp_path, seed), graph.io) for seed in (1, 2))
    catalogues.path(new).write_bytes(catalogues.path(old).read_bytes())
    answers = CatalogueAnswers(graph, catalogues, told.append)
    assert served_by(answers) == old
    assert [str(error.what) for error in told] == ["the file holds another catalogue than its name says"]
    catalogues.path(old).unlink()
    with pytest.raises(ArtifactError, match="another catalogue than its name says"):
        CatalogueAnswers(graph, catalogues, told.append)


@pytest.mark.parametrize("problem", [ArtifactError("gone"), RuntimeError("CUDA error: unspecified launch failure")])
def test_one_that_does_not_load_is_told_and_tried_again_whatever_went_wrong(
    graph: OnnxRuntimeRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, problem: Exception
) -> None:
    monkeypatch.setattr(catalogue_module, "_LOOK_EVERY_S", 3600.0)  # the test looks itself
    catalogues, told = Catalogues(tmp_path / "model"), []
    old = catalogues.add(catalogue(tmp_path, 1), graph.io)
    answers = CatalogueAnswers(graph, catalogues, told.append)
    new = catalogues.add(catalogue(tmp_path, 2), graph.io)
    with monkeypatch.context() as failing:
        failing.setattr(graph, "stage_residents", Mock(side_effect=problem))
        failing.setattr(catalogue_module, "_RETRY_S", 0.0)
        answers.look()
        failing.setattr(catalogue_module, "_RETRY_S", 3600.0)
        answers.look()
        answers.look()
        assert (told, served_by(answers)) == ([problem] * 2, old), "tried again when that is due"
        failing.setattr(catalogue_module, "_RETRY_S", 0.0)
        catalogues.served_path.write_text(catalogues.served_path.read_text() + " ")
        answers.look()
    answers.look()
    answers.look()
    assert (told, served_by(answers)) == ([problem] * 3 + [None], new)
    catalogues.served_path.write_text(catalogues.served_path.read_text() + " ")
    answers.look()
    assert told[-1] is None
    assert len(told) == 4, "the same one is none that was loaded"


def served_by(answers: CatalogueAnswers) -> str:
    """Digest of the catalogue of an answer."""
    room = {"features": np.zeros((1, 2, 3), np.float16), "lengths": np.ones((1, 3), np.int64)}
    (answer,) = answers.run(room, [1], [[ItemRules()]])
    assert isinstance(answer, dict)
    return bytes(answer["catalogue"]).hex()


def test_the_stock_backend_is_not_for_catalogues(tmp_path: Path) -> None:
    sizes = ItemSizes.of(ExportOptions(items="catalogue"), 8192)
    assert sizes is not None
    plan, repository = prove(write_plan(tmp_path / "plans", io=item_serving_io(64, 8, sizes))), Repository(tmp_path / "repository")
    with pytest.raises(ArtifactError, match=r"would copy the catalogue's index, 161 MB, with every batch") as error:
        add_version(repository, plan, Options("tensorrt"))
    assert "--flavor python" in str(error.value.hint)
    add_version(repository, plan, Options("python"))
    config = read_config(repository.config_path("onerec"))
    assert {tensor.name: tensor.optional for tensor in config.input} == {
        "features": False,
        "lengths": False,
        "excluded_items": True,
        "required_categories": True,
        "forbidden_categories": True,
        "beams": True,
    }
    assert [tensor.name for tensor in config.output] == ["sids", "scores", "item_ids", "item_counts", "catalogue"]
