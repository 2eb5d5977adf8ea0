"""The beam step that follows a catalogue: reference and ONNX function beside brute force over all semantic IDs, with every rule."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onerec_trt.core.graph_io import GraphIO, GraphTensor, Role
from onerec_trt.models.catalogue_index import CatalogueItems, index_in_memory
from onerec_trt.runtime.item_index import ItemIndex
from onerec_trt.runtime.item_rules import ItemRules, RuleEncoder

CLASSES, EXCLUDED = 300, 6
STEPS = {1: "BeamStepItems1", 2: "BeamStepItems2", 3: "BeamStepItems3"}


def small_io(codebook: int, width: int) -> GraphIO:
    """The rule inputs of a graph, and the score output that says how wide it is."""
    inputs = (
        GraphTensor(name="limits", role=Role.REQUEST_LIMITS, dtype="int32", axes=("batch", 3)),
        GraphTensor(name="allowed", role=Role.ALLOWED_CLASSES, dtype="int32", axes=("batch", CLASSES)),
        GraphTensor(name="excluded", role=Role.EXCLUDED_SIDS, dtype="int32", axes=("batch", EXCLUDED)),
    )
    scores = GraphTensor(name="scores", role=Role.ITEM_SCORES, dtype="float32", axes=("batch", width))
    return GraphIO(inputs=inputs, outputs=(scores,), min_context=1)


def random_catalogue(codebook: int, items: int, seed: int) -> CatalogueItems:
    draw = np.random.default_rng(seed)
    sids = draw.integers(0, codebook, (items, 3)) // draw.integers(1, 4, (items, 1))  # crowded at small codes
    categories = draw.integers(0, 8, items).astype(np.uint64)
    return CatalogueItems(draw.permutation(items * 3)[:items].astype(np.int64), sids, categories)


class Brute:
    """A catalogue as a dictionary, and what a request may get of it, item by item."""

    def __init__(self, catalogue: CatalogueItems, rules: ItemRules) -> None:
        self.sids: dict[tuple[int, ...], list[int]] = {}
        for number, sid, bits in zip(catalogue.ids_n.tolist(), catalogue.sids_n3.tolist(), catalogue.categories_n.tolist(), strict=True):
            good = (not rules.required or bits & rules.required) and not bits & rules.forbidden
            if good:
                self.sids.setdefault(tuple(sid), [])
                if number not in rules.excluded:
                    self.sids[tuple(sid)].append(number)
        self.alive = {sid for sid, items in self.sids.items() if items}

    def allowed(self, prefix: tuple[int, ...]) -> bool:
        """Exclusion acts on whole semantic IDs, categories on beginnings too."""
        if len(prefix) == 3:
            return prefix in self.alive
        return any(sid[: len(prefix)] == prefix for sid in self.sids)


def tensors(index: ItemIndex, *names: str) -> list[torch.Tensor]:
    return [torch.from_numpy(np.array(index.arrays[name])) for name in names]


def step_inputs(index: ItemIndex, rules: list[ItemRules], level: int, width: int, prefixes: torch.Tensor) -> list[torch.Tensor]:
    """Inputs of the operator of a level behind logits and scores; prefixes INT64 [B, R, level - 1]."""
    given = RuleEncoder(index, small_io(index.codebook, width)).inputs(rules)
    limits, allowed, excluded = (torch.from_numpy(given[name]) for name in ("limits", "allowed", "excluded"))
    tokens = [each.contiguous() for each in prefixes.unbind(-1)]
    if level == 1:
        return [*tensors(index, "first_classes"), limits, allowed]
    pairs = tensors(index, "pair_bits", "pair_ranks")
    if level == 2:
        return [*tokens, *pairs, *tensors(index, "pair_classes"), limits, allowed]
    return [*tokens, *pairs, *tensors(index, "pair_rows", "entries"), limits, allowed, excluded]


def beginnings(catalogue: CatalogueItems, level: int, batch: int, rows: int, seed: int) -> torch.Tensor:
    """Different beginnings of items, some of no item, and one that is no beam.

    That one has no last token, as a step leaves a place without a beam; in every other request it has none at all.
    """
    draw = np.random.default_rng(seed)
    known = np.unique(catalogue.sids_n3[:, : level - 1], axis=0)
    chosen = np.stack([known[draw.choice(len(known), rows, replace=len(known) < rows)] for _ in range(batch)])
    if rows > 2 and level > 1:
        chosen[:, -1, :-1], chosen[:, -1, -1] = 0, -1  # beginnings with 0 are there: many items have small codes
        chosen[::2, -1] = -1
    return torch.from_numpy(chosen.astype(np.int64))


RULES = [
    ItemRules(),
    ItemRules(required=1),
    ItemRules(forbidden=6, beams=3),
    ItemRules(required=3, forbidden=4),
]


@pytest.mark.parametrize("level", [1, 2, 3])
@pytest.mark.parametrize(("codebook", "items", "rows", "width"), [(5, 12, 3, 4), (40, 300, 7, 30), (33, 60, 4, 8), (3, 27, 3, 9)])
def test_only_allowed_codes_best_first(hold, half, level, codebook, items, rows, width):
    catalogue = random_catalogue(codebook, items, seed=items)
    index = index_in_memory(catalogue, codebook, CLASSES)
    rows, width = (1, min(width, codebook)) if level == 1 else (rows, min(width, rows * codebook))
    excluded = catalogue.ids_n[:5].tolist()
    rules = [each if each.beams is None else ItemRules(forbidden=6, beams=min(3, width)) for each in RULES]
    rules.append(ItemRules(excluded=[*excluded, 10**6]))
    prefixes = beginnings(catalogue, level, len(rules), rows, seed=level)
    logits, scores = half(len(rules) * rows, codebook), torch.randn(len(rules), rows)
    outcome = hold(STEPS[level], logits, scores, *step_inputs(index, rules, level, width, prefixes), width=width)
    total = logits.double().log_softmax(-1).view(len(rules), rows, codebook) + scores[..., None].double()
    for best, parent, token in outcome:
        for request, rule in enumerate(rules):
            brute = Brute(catalogue, rule)
            ways = {
                (row, code): float(total[request, row, code])
                for row in range(rows)
                for code in range(codebook)
                if min(prefixes[request, row].tolist(), default=0) >= 0 and brute.allowed((*prefixes[request, row].tolist(), code))
            }
            expected = sorted(ways.values(), reverse=True)[: min(width, rule.beams or width)]
            found = [(int(p), int(t)) for p, t in zip(parent[request], token[request], strict=True) if t >= 0]
            assert len(found) == len(expected)
            assert (token[request, len(found) :] == -1).all()
            assert np.isneginf(best[request, len(found) :]).all()
            assert [ways[each] for each in found] == pytest.approx(expected, abs=1e-5)
            assert len(set(found)) == len(found)
