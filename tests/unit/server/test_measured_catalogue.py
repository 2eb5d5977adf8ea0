"""A measurement of a served model that follows a catalogue, at tiny scale on a CPU: rules, swaps under load, and every answer checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import RequestError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.runtime.item_rules import OPEN, ItemRules, allowed_items
from onerec_trt.server.client import Items
from onerec_trt.tools.serving.answers import AnswerCheck, AnswerCounts, all_counts
from onerec_trt.tools.serving.result import ServingResult, saturating
from onerec_trt.tools.serving.run import Extent, measure_serving

SERVER = Path(__file__).parents[3] / ".venv-server"
CODEBOOK, WIDTH = 9, 40
EXTENT = Extent(context=2, mixed=(1, 2), batches=(1, 4), samples=3, clients=2, seconds=1.5, arrival_seconds=1.5, instances=(1,), excluded=3)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    folder, draw = tmp_path_factory.mktemp("catalogues"), np.random.default_rng(0)
    paths = tuple(folder / f"{name}.index" for name in "ab")
    for number, path in enumerate(paths):
        ids = draw.permutation(1000)[:60] + 1000 * number
        items = CatalogueItems(ids, draw.integers(0, 4, (60, 3)), np.zeros(60, np.uint64))
        write_index(path, CODEBOOK, index_arrays(items, CODEBOOK, 40))
    return paths


@pytest.fixture(scope="module")
def model(make_export: Any, item_graph: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    exported: Path = make_export(tmp_path_factory.mktemp("export") / "exported", 0, item_graph(CODEBOOK, WIDTH, 200, 8))
    return exported / "model.onnx"


def test_a_catalogue_is_served_followed_and_swapped_under_load(model: Path, paths: tuple[Path, ...], tmp_path: Path) -> None:
    out = tmp_path / "items-serving.json"
    result = measure_serving(model, SERVER, out, replace(EXTENT, catalogues=paths), lambda _: None, "abc")
    assert ServingResult.model_validate_json(out.read_text()) == result
    digests = [ItemIndex.load(path).digest for path in paths]
    assert list(result.catalogues) == digests
    assert all(held["items"] == 60 for held in result.catalogues.values())
    assert all(load.result.failed == 0 for load in result.loads)
    for load in result.loads:
        assert load.result.answers is not None
        assert load.result.answers.wrong == 0
        assert load.result.answers.found > 0
        answered = sum(load.result.answers.by_catalogue.values())
        assert answered >= len(load.result.samples_ms) * load.batch
    rules, *swapped = result.loads[-3:]
    assert rules.excluded == 3
    assert rules.swaps is None
    assert "3 items excluded" in rules.name
    assert [load.rate is None for load in swapped] == [True, False]
    for load in swapped:
        assert load.swaps is not None
        assert len(load.swaps.command_ms) >= 2
        assert len(load.swaps.served_ms) == len(load.swaps.command_ms)
        assert load.result.answers is not None
        assert set(load.result.answers.by_catalogue) == set(digests)
        assert "catalogues swapped" in load.name
    plain = result.loads[:-3]
    assert all(set(load.result.answers.by_catalogue) == {digests[0]} for load in plain if load.result.answers is not None)
    assert result.summary is not None
    assert result.summary.requests_per_s == saturating(plain).result.requests_per_s


def test_a_catalogue_belongs_to_a_model_that_follows_one(model: Path, paths: tuple[Path, ...], make_export: Any, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="the model follows a catalogue, and there is none"):
        measure_serving(model, SERVER, tmp_path / "serving.json", EXTENT)
    open_beams = make_export(tmp_path / "exported", 0) / "model.onnx"
    with pytest.raises(RequestError, match="its beams are open, and there is a catalogue"):
        measure_serving(open_beams, SERVER, tmp_path / "serving.json", replace(EXTENT, catalogues=paths, excluded=0))
    with pytest.raises(RequestError, match="or an exclusion"):
        measure_serving(open_beams, SERVER, tmp_path / "serving.json", EXTENT)
    with pytest.raises(RequestError, match="61 items are to be excluded, and the first catalogue has 60"):
        measure_serving(model, SERVER, tmp_path / "serving.json", replace(EXTENT, catalogues=paths, excluded=61))
    assert not (tmp_path / "serving.json").exists()


def answer(index: ItemIndex, rules: ItemRules = OPEN) -> Items:
    """The first semantic IDs of a catalogue, and a place with none."""
    sids = np.array([[a, b, c] for a in range(4) for b in range(4) for c in range(4)])
    entries = index.entries_of(sids)
    allowed = allowed_items(index, entries, rules)
    places = [place for place in range(len(sids)) if allowed.at(place)][:3]
    sids_W3 = np.concatenate([sids[places], np.full((1, 3), -1)])
    ids = (*(tuple(allowed.at(place)) for place in places), ())
    return Items(sids_W3, np.zeros(4, np.float32), ids, index.digest)


def counts_of(indexes: list[ItemIndex], items: Items, rules: ItemRules = OPEN) -> AnswerCounts:
    check = AnswerCheck(indexes)
    check.count([items], [rules])
    return check.counts()


def test_wrong_answers_are_counted(paths: tuple[Path, ...]) -> None:
    indexes = [ItemIndex.load(path) for path in paths]
    right = answer(indexes[0])
    assert counts_of(indexes, right) == AnswerCounts(by_catalogue={indexes[0].digest: 1}, found=3, wrong=0)
    seen = ItemRules(excluded=right.ids[1])
    assert counts_of(indexes, answer(indexes[0], seen), seen).wrong == 0
    assert counts_of(indexes, right, seen).wrong == 1, "one came out that the rules forbid"
    assert counts_of(indexes, replace(right, catalogue=indexes[1].digest)).wrong == 3, "items of another catalogue"
    assert counts_of(indexes, replace(right, catalogue="0" * 64)).wrong == 4, "a catalogue that nobody knows"
    assert counts_of(indexes, replace(right, ids=((), *right.ids[1:]))).wrong == 1, "a semantic ID without items"
    both = all_counts([counts_of(indexes, right), counts_of(indexes, replace(right, catalogue=indexes[1].digest))])
    assert both == AnswerCounts(by_catalogue={index.digest: 1 for index in indexes}, found=6, wrong=3)
