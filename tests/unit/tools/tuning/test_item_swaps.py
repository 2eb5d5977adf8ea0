"""The measurement of swaps and of whole plans with a catalogue, without a GPU: its figures, wrong answers, and what it refuses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onerec_trt.core.errors import GpuError, RecipeError
from onerec_trt.core.graph_io import GraphIO
from onerec_trt.core.recipe import ExportOptions
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.models.catalogue_index import index_in_memory
from onerec_trt.operators.kernels.beam_step_items_cases import random_catalogue
from onerec_trt.runtime.item_index import ItemIndex
from onerec_trt.runtime.item_rules import OPEN, ItemRules
from onerec_trt.tools.tuning.item_plans import plan_bench, valid_items
from onerec_trt.tools.tuning.item_swaps import swaps_under_load

CODEBOOK, WIDTH, CAPACITY, REQUESTS = 16, 6, 64, 3
SIZES = ItemSizes.of(ExportOptions(items="catalogue", item_capacity=CAPACITY, max_excluded=8, category_classes=40), CODEBOOK)
INPUTS = {"features": np.zeros((REQUESTS, 2, 3), np.float16), "lengths": np.ones((REQUESTS, 3), np.int64)}


@pytest.fixture(scope="module")
def indexes() -> list[ItemIndex]:
    return [index_in_memory(random_catalogue(CODEBOOK, items, seed=items), CODEBOOK, 40) for items in (50, 40)]


def first_sids(index: ItemIndex) -> np.ndarray:
    """The first semantic IDs of a catalogue, [W, 3]."""
    keys = index.arrays["keys"][:WIDTH]
    return np.stack([keys // CODEBOOK**2, keys // CODEBOOK % CODEBOOK, keys % CODEBOOK], -1)


class FirstItems:
    """Finds the first semantic IDs of the catalogue that is bound; of `deaf` ones, of the catalogue that was bound `deaf` binds before."""

    def __init__(self, indexes: list[ItemIndex], deaf: int = 0) -> None:
        assert SIZES is not None
        self.io: GraphIO = item_serving_io(3, WIDTH, SIZES)
        self._answers = {index.resident(self.io)["entries"].tobytes(): first_sids(index) for index in indexes}
        self._bound: list[bytes] = []
        self._deaf = deaf

    def stage_residents(self, arrays: Mapping[str, Any], /) -> Mapping[str, Any]:
        return {name: array.copy() for name, array in arrays.items()}

    def bind_staged(self, staged: Any, /) -> None:
        self._bound.append(staged["entries"].tobytes())

    def submit(self, inputs: Mapping[str, Any], /) -> Any:
        bound = self._bound[max(0, len(self._bound) - 1 - self._deaf)]
        sids = np.tile(self._answers[bound], (len(inputs["lengths"]), 1, 1))

        class Done:
            def result(self) -> dict[str, Any]:
                time.sleep(0.001)  # so that figures of three decimals are exact enough
                return {"sids": sids, "scores": np.zeros(sids.shape[:2], np.float32)}

        return Done()


def measured(runner: FirstItems, indexes: list[ItemIndex]) -> dict[str, Any]:
    rules = [ItemRules(forbidden=1)] * REQUESTS
    return swaps_under_load(runner, indexes, INPUTS, rules, swaps=9, batches=30, synchronize=lambda: None)


def test_every_swap_and_every_answer_is_counted(indexes: list[ItemIndex]) -> None:
    result = measured(FirstItems(indexes), indexes)
    assert result["wrong_answers"] == 0
    assert result["swaps"] == 9
    assert result["answers"] >= 30
    assert len(result["gaps_ms_beside_swaps"]) == result["answers"] - 1
    assert sum(result["answers_of_each_catalogue"]) == result["answers"]
    assert result["longest_batch_ms_beside_swaps"] == max(result["gaps_ms_beside_swaps"])
    stall = result["longest_batch_ms_beside_swaps"] / result["batch_ms"] - 1
    assert result["longest_stall_in_batches"] == pytest.approx(stall, rel=0.1, abs=0.002)
    times = ("swap_ms", "stage_ms", "longest_enqueue_ms", "from_call_to_served_ms", "longest_submit_ms", "longest_submit_ms_beside_swaps")
    assert all(result[name] >= 0 for name in times)


def test_an_answer_of_another_catalogue_than_it_names_is_told(indexes: list[ItemIndex]) -> None:
    assert measured(FirstItems(indexes, deaf=1), indexes)["wrong_answers"] > 0


def test_a_swap_that_fails_fails_the_measurement(indexes: list[ItemIndex]) -> None:
    runner, staged = FirstItems(indexes), 0

    def stage(arrays: Mapping[str, Any]) -> Mapping[str, Any]:
        nonlocal staged
        staged += 1
        if staged > 7:
            raise GpuError("the GPU's memory is exhausted")
        return arrays

    runner.stage_residents = stage  # type: ignore[method-assign, assignment]
    with pytest.raises(GpuError, match="exhausted"):
        measured(runner, indexes)


def test_valid_items_are_counted_for_the_rules_of_each_request(indexes: list[ItemIndex]) -> None:
    index = indexes[0]
    sids = np.tile(first_sids(index), (2, 1, 1))
    ids = [
        index.arrays["items"][row:end].tolist() for row, end in zip(index.arrays["item_rows"], index.arrays["item_rows"][1:], strict=False)
    ]
    assert valid_items(index, sids, [OPEN, ItemRules(excluded=ids[0])]) == {"found": 12, "in the catalogue": 12, "allowed": 11}
    sids[0, 0], sids[1, 5] = CODEBOOK - 1, -1
    assert index.entries_of(sids[:1, 0]) == [-1], "no item of the test's catalogue"
    assert valid_items(index, sids, [OPEN, OPEN]) == {"found": 11, "in the catalogue": 10, "allowed": 10}


def test_a_command_s_words_become_one_bench_of_plans(tmp_path: Path) -> None:
    options = plan_bench("4B-A0.5B", 2, "fp8-row-block+kernels", ["32x512x512", "1x512x512"], tmp_path)
    assert (options.model, options.config.n_layers, [case.batch for case in options.cases]) == ("4B-A0.5B-2layers", 2, [32, 1])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("3B", 0, "fp16", ["1x8x8"]), "no size '3B'"),
        (("1B", 0, "fp4", ["1x8x8"]), "no 'fp4'"),
        (("1B", 0, "fp16", ["1x8"]), "not a batch shape"),
        (("1B", 0, "fp16", ["1x8x8"]), "it is without kernels"),
        (("1B", 0, "fp16+kernels", ["1x8x8", "1x9x8"]), "several beams"),
    ],
)
def test_words_that_make_no_bench_are_refused(tmp_path: Path, words: tuple[Any, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        plan_bench(*words, tmp_path)
