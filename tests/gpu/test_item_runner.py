"""Plans that follow a catalogue on a GPU, with kernels: ONNX Runtime's items, rules, swaps while batches run, bad indexes."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import ArtifactError, BuildError
from onerec_trt.models.catalogue_index import CatalogueItems, index_arrays, index_in_memory
from onerec_trt.operators.kernels.beam_step_items_cases import random_catalogue
from onerec_trt.runtime.item_index import ItemIndex, write_index
from onerec_trt.runtime.item_rules import ItemRules
from onerec_trt.runtime.item_runner import ItemBatch, ItemRunner
from onerec_trt.runtime.onnxruntime_runner import OnnxRuntimeRunner
from onerec_trt.runtime.tensorrt_runner import TensorRtRunner
from onerec_trt.tools.bench.case import parse_case
from onerec_trt.tools.tuning.item_plans import PlanBench, measure_plans, valid_items

from .small_catalogue import BATCH, BEAM, CLASSES, CODEBOOK, CONFIG, CONTEXT, DRIFT_NAT, EXCLUDED, LENGTHS, build, export

REGRET_NAT = 0.02  # of the mean score of what two engines find: items picked blindly are worse by more than 1
CLIENTS, ANSWERS = 4, 100


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(tmp_path_factory.mktemp("items"))


@pytest.fixture(scope="module")
def runner(exported: Path) -> TensorRtRunner:
    return TensorRtRunner.load(build(exported, exported.parent / "plans"), executions=2)


@pytest.fixture(scope="module")
def reference(exported: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(exported / "model.onnx")


def few_items(seed: int) -> CatalogueItems:
    """Fewer than there are beams, so that a search finds all of them; some share a semantic ID."""
    draw = np.random.default_rng(seed)
    sids = draw.integers(0, CODEBOOK, (12, 3))
    return CatalogueItems(draw.permutation(1000)[:14] + 1000 * seed, sids[[*range(12), 3, 7]], draw.integers(0, 8, 14, np.uint64))


@pytest.fixture(scope="module")
def few() -> list[ItemIndex]:
    return [index_in_memory(few_items(seed), CODEBOOK, CLASSES) for seed in (1, 2)]


@pytest.fixture(scope="module")
def many() -> ItemIndex:
    return index_in_memory(random_catalogue(CODEBOOK, 3000, seed=3), CODEBOOK, CLASSES)


def batch_of(requests: int) -> dict[str, Any]:
    draw = np.random.default_rng(requests)
    features = draw.standard_normal((requests, CONTEXT, CONFIG.feature_width)).astype(np.float16)
    return {"features": features, "lengths": np.tile(np.array(LENGTHS), (requests, 1))}


def scored(batch: ItemBatch, request: int) -> dict[tuple[int, ...], tuple[float, list[int]]]:
    """Score and item ids of every semantic ID that was found; behind the last one there is nothing."""
    found = batch.sids_BW3[request, :, 0] >= 0
    assert (np.diff(found.astype(int)) <= 0).all()
    assert (batch.sids_BW3[request][~found] == -1).all()
    assert np.isneginf(batch.scores_BW[request][~found]).all()
    sids = map(tuple, batch.sids_BW3[request][found].tolist())
    return {sid: (float(batch.scores_BW[request, place]), batch.items[request].at(place)) for place, sid in enumerate(sids)}


def test_without_kernels_nothing_is_built(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(BuildError, match="find semantic IDs of no item") as caught:
        build(exported, tmp_path / "plans", plugins=False)
    assert "build.plugins: true" in caught.value.hint
    assert not (tmp_path / "plans").exists()


def test_all_allowed_items_of_a_small_catalogue_are_found(
    runner: TensorRtRunner, reference: OnnxRuntimeRunner, few: list[ItemIndex]
) -> None:
    ids = few[0].arrays["items"].tolist()
    rules = [ItemRules(), ItemRules(excluded=ids[::2]), ItemRules(required=3), ItemRules(forbidden=5, excluded=ids[:3])]
    inputs = batch_of(len(rules))
    found, expected = ItemRunner(runner, few[0])(inputs, rules), ItemRunner(reference, few[0])(inputs, rules)
    assert found.catalogue == expected.catalogue == few[0].digest
    for request in range(len(rules)):
        mine, theirs = scored(found, request), scored(expected, request)
        assert {sid: items for sid, (_, items) in mine.items()} == {sid: items for sid, (_, items) in theirs.items()}
        assert [mine[sid][0] for sid in mine] == pytest.approx([theirs[sid][0] for sid in mine], abs=DRIFT_NAT)
    assert len(scored(found, 0)) == few[0].sids


def test_every_item_is_allowed_and_they_are_as_good_as_onnx_runtime_s(
    runner: TensorRtRunner, reference: OnnxRuntimeRunner, many: ItemIndex
) -> None:
    seen = many.arrays["items"][:EXCLUDED].tolist()
    kinds = [ItemRules(), ItemRules(excluded=seen), ItemRules(required=6, forbidden=1), ItemRules(beams=5)]
    rules, inputs = kinds * (BATCH // len(kinds)), batch_of(BATCH)
    found, expected = ItemRunner(runner, many)(inputs, rules), ItemRunner(reference, many)(inputs, rules)
    counts = valid_items(many, found.sids_BW3, rules)
    assert counts["found"] == counts["in the catalogue"] == counts["allowed"] == BATCH // 4 * (3 * BEAM + 5)
    for request in range(BATCH):
        mine, theirs = ([score for score, _ in scored(each, request).values()] for each in (found, expected))
        assert len(mine) == len(theirs)
        assert mine == sorted(mine, reverse=True)
        assert np.mean(mine) >= np.mean(theirs) - REGRET_NAT


def test_swaps_while_batches_run_lose_no_answer_and_mix_no_catalogue(runner: TensorRtRunner, few: list[ItemIndex], many: ItemIndex) -> None:
    indexes, inputs, rules = [*few, many], batch_of(3), [ItemRules(forbidden=1)] * 3
    server = ItemRunner(runner, few[0])
    expected: dict[str, ItemBatch] = {}
    for index in indexes:
        server.swap(index)
        expected[index.digest] = server(inputs, rules)
    with ThreadPoolExecutor(CLIENTS) as pool:
        asking = [pool.submit(lambda: [server(inputs, rules) for _ in range(ANSWERS)]) for _ in range(CLIENTS)]
        for index in itertools.cycle(indexes):
            server.swap(index)
            if all(each.done() for each in asking):
                break
    answers = [answer for each in asking for answer in each.result()]
    assert len(answers) == CLIENTS * ANSWERS
    assert len({answer.catalogue for answer in answers}) > 1
    for answer in answers:
        assert answer.sids_BW3.tobytes() == expected[answer.catalogue].sids_BW3.tobytes()
        assert answer.scores_BW.tobytes() == expected[answer.catalogue].scores_BW.tobytes()
    before = server.catalogue
    server.swap(next(index for index in indexes if index.digest != before))
    assert server.rollback() == before
    assert server(inputs, rules).sids_BW3.tobytes() == expected[before].sids_BW3.tobytes()


def test_an_index_that_does_not_load_leaves_the_old_one(runner: TensorRtRunner, few: list[ItemIndex], tmp_path: Path) -> None:
    server, inputs = ItemRunner(runner, few[0]), batch_of(2)
    expected = server(inputs)
    write_index(good := tmp_path / "good.index", CODEBOOK, index_arrays(few_items(2), CODEBOOK, CLASSES))
    (truncated := tmp_path / "truncated.index").write_bytes(good.read_bytes()[:-9])
    write_index(foreign := tmp_path / "foreign.index", 9, index_arrays(random_catalogue(9, 20, seed=1), 9, CLASSES))
    write_index(large := tmp_path / "large.index", CODEBOOK, index_arrays(random_catalogue(CODEBOOK, 5000, seed=1), CODEBOOK, CLASSES))
    for path, message in ((truncated, "truncated"), (foreign, "codebook of 9"), (large, "the graph takes 4000")):
        with pytest.raises(ArtifactError, match=message):
            server.load(path)
        again = server(inputs)
        assert again.catalogue == few[0].digest
        assert again.sids_BW3.tobytes() == expected.sids_BW3.tobytes()
    assert server.load(good) == few[1].digest == server(inputs).catalogue


def test_the_measurement_of_whole_plans_finds_valid_items_alone(tmp_path: Path, few: list[ItemIndex], many: ItemIndex) -> None:
    case = parse_case("4x16x32")
    options = PlanBench("tiny", CONFIG, "fp16+kernels", (case,), 5, tmp_path)
    rules = ItemRules(excluded=tuple(many.arrays["items"][:200].tolist()), required=6, forbidden=1)
    (result,) = measure_plans(options, (many, few[0]), lambda _: rules)["cases"]
    for counts in result["valid"].values():
        assert counts["found"] == counts["in the catalogue"] == counts["allowed"] == case.batch * BEAM
    assert result["swap"]["wrong_answers"] == 0
    assert all(result["beam_steps_ms"][name] > 0 for name in ("open", "no rules", "rules"))
