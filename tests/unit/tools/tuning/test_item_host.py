"""What the host does for a batch that follows a catalogue: rules are encoded anew in every sample, and the command writes what it saw."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from onerec_trt.export.contracts import ItemSizes, item_serving_io
from onerec_trt.models.catalogue_index import index_arrays, index_in_memory
from onerec_trt.operators.kernels.beam_step_items_cases import random_catalogue
from onerec_trt.runtime.item_index import write_index
from onerec_trt.runtime.item_rules import ItemRules, RuleEncoder
from onerec_trt.tools.tuning.item_host import all_rules, bench_rules, host_ms

CODEBOOK, ITEMS = 16, 50


def test_every_sample_encodes_rules_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    index = index_in_memory(random_catalogue(CODEBOOK, ITEMS, seed=1), CODEBOOK, 40)
    seen: list[ItemRules] = []
    real = RuleEncoder.inputs
    monkeypatch.setattr(RuleEncoder, "inputs", lambda self, rules: seen.extend(rules) or real(self, rules))
    io = item_serving_io(3, 6, ItemSizes(CODEBOOK, items=ITEMS, excluded=8, classes=40))
    taken = host_ms(index, io, np.zeros((1, 6, 3), np.int64), [ItemRules(excluded=[1, 2, 3])], samples=3)
    assert taken.keys() == {"rules", "items"}
    assert all(each > 0 for each in taken.values())
    assert len({id(each) for each in seen}) == len(seen) >= 3
    assert {each.excluded_ids.tobytes() for each in seen} == {np.array([1, 2, 3]).tobytes()}


def test_the_command_measures_an_index(tmp_path: Path) -> None:
    write_index(path := tmp_path / "items.index", CODEBOOK, index_arrays(random_catalogue(CODEBOOK, ITEMS, seed=1), CODEBOOK))
    said: list[str] = []
    report = bench_rules(path, tmp_path / "out.json", samples=3, say=said.append, commit="abc")
    assert json.loads((tmp_path / "out.json").read_text()) == report
    assert [(case["batch"], case["rules"]) for case in report["cases"]] == [(b, name) for b in (32, 8, 1) for name in ("no rules", "rules")]
    assert len(said) == len(report["cases"])
    assert (report["environment"]["commit"], report["environment"]["items"], report["environment"]["excluded"]) == ("abc", ITEMS, ITEMS)


def test_rules_are_the_same_each_time_and_others_for_each_request() -> None:
    index = index_in_memory(random_catalogue(CODEBOOK, ITEMS, seed=1), CODEBOOK, 40)
    first, again, other = (all_rules(index, request) for request in (0, 0, 1))
    assert list(first.excluded) == list(again.excluded) != list(other.excluded)
    assert (first.required, first.forbidden) == (again.required, again.forbidden)
    assert sorted(first.excluded) == sorted(index.arrays["items"].tolist())
