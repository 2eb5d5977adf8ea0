"""Cases of BeamStepItems1, 2, 3: a random catalogue, beams that it knows, and requests with every kind of rule."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...core.dtypes import DType
from ...core.graph_io import GraphIO, GraphTensor, Role
from ...models.catalogue_index import CatalogueItems, index_in_memory
from ...runtime.item_index import ItemIndex
from ...runtime.item_rules import ItemRules, RuleEncoder
from ..launch.case import Case, Example, KernelCases, Trial, half

CATEGORIES = 6
CLASSES, EXCLUDED = 80, 40  # 2^6 sets of categories, and a few seen items


@dataclass(frozen=True)
class World:
    """A catalogue, the beams that stand on it, and the rules of each request.

    Attributes:
        index: The catalogue.
        rules: Of each request.
        classes: Category classes that the inputs have room for.
        excluded: Excluded semantic IDs that they have room for.
    """

    index: ItemIndex
    rules: tuple[ItemRules, ...]
    classes: int = CLASSES
    excluded: int = EXCLUDED

    def rule_inputs(self, width: int) -> list[Tensor]:
        """Limits, allowed classes, excluded entries."""
        names = {Role.REQUEST_LIMITS: 3, Role.ALLOWED_CLASSES: self.classes, Role.EXCLUDED_SIDS: self.excluded}
        tensors = tuple(GraphTensor(name=role, role=role, dtype="int32", axes=("batch", size)) for role, size in names.items())
        scores = GraphTensor(name="scores", role=Role.ITEM_SCORES, dtype="float32", axes=("batch", width))
        encoded = RuleEncoder(self.index, GraphIO(inputs=tensors, outputs=(scores,), min_context=1)).inputs(self.rules)
        return [torch.from_numpy(encoded[role]) for role in names]

    def beams(self, level: int, rows: int) -> list[Tensor]:
        """Codes of beams before a level, one INT64 [B, R] each: different beginnings, the last of every third request none.

        As the step before leaves it: a place without a beam has the codes of the first beam, and the token -1.
        """
        keys = np.unique(self.index.arrays["keys"].astype(np.int64) // self.index.codebook ** (4 - level))
        draw = np.random.default_rng(level)
        few = len(keys) < rows
        chosen = np.stack([keys[np.sort(draw.choice(len(keys), rows, replace=few))] for _ in self.rules])
        beams = [chosen // self.index.codebook**place % self.index.codebook for place in reversed(range(level - 1))]
        for each in beams[:-1]:
            each[::3, -1] = each[::3, 0]
        for each in beams[-1:]:
            each[::3, -1] = -1
        return [torch.from_numpy(each) for each in beams]


def items_case(level: int, world: World, rows: int, width: int) -> Case:
    """The step of a level for beams of a catalogue."""
    requests, codebook = len(world.rules), world.index.codebook
    names = {1: ("first_classes",), 2: ("pair_bits", "pair_ranks", "pair_classes"), 3: ("pair_bits", "pair_ranks", "pair_rows", "entries")}
    index = [torch.from_numpy(np.array(world.index.arrays[name])) for name in names[level]]
    rules = world.rule_inputs(width)[: 2 if level < 3 else 3]
    inputs = (
        half(requests * rows, codebook),
        Example("float32", (requests, rows), lambda shape, device: torch.rand(shape, device=device).mul_(-10).sort(1, True).values),
        *(_fixed(each, dynamic=True) for each in world.beams(level, rows)),
        *(_fixed(each, dynamic=False) for each in index),
        *(_fixed(each, dynamic=True) for each in rules),
    )
    return Case(f"BeamStepItems{level}", inputs, (requests, rows, codebook), {"width": width}, requests=requests)


def _fixed(tensor: Tensor, *, dynamic: bool) -> Example:
    """An input that is always the same."""
    dtype: DType = "int64" if tensor.dtype == torch.int64 else "int32"
    return Example(dtype, tuple(tensor.shape), lambda _shape, device: tensor.to(device), (0,) if dynamic else ())


def random_catalogue(codebook: int, items: int, seed: int, categories: int = CATEGORIES, firsts: int | None = None) -> CatalogueItems:
    """Items crowded at small first codes, as clusters of real catalogues are of unequal size. `firsts`: codes among which these are."""
    draw = np.random.default_rng(seed)
    sids = np.stack([_skewed(draw, items, firsts or codebook), _skewed(draw, items, codebook), draw.integers(0, codebook, items)], 1)
    bits = np.uint64(1) << draw.integers(0, categories, items).astype(np.uint64)
    return CatalogueItems(draw.permutation(items).astype(np.int64), sids, bits)


def _skewed(draw: np.random.Generator, count: int, below: int) -> NDArray[np.int64]:
    return (draw.random(count) ** 2 * below).astype(np.int64)


@cache
def small_world(codebook: int, items: int, requests: int, firsts: int | None = None) -> World:
    """Requests in turns without rules, with seen items, with categories, and with both and fewer beams."""
    catalogue = random_catalogue(codebook, items, seed=codebook, firsts=firsts)
    seen = tuple(catalogue.ids_n[: items // 3].tolist())
    kinds = (ItemRules(), ItemRules(excluded=seen[:EXCLUDED]), ItemRules(required=3), ItemRules(excluded=seen[:9], forbidden=1, beams=5))
    return World(index_in_memory(catalogue, codebook, CLASSES), tuple(kinds[place % 4] for place in range(requests)))


def items_cases(level: int) -> KernelCases:
    """What is tried with the kernel of a level."""

    def trials() -> Iterator[Trial]:
        if level == 2:  # more than a thousand pairs in a row
            yield Trial(items_case(2, small_world(1100, 40_000, 4, firsts=4), 3, 40))
        for codebook, items, rows, width in ((32, 60, 6, 20), (1030, 3000, 7, 40)):
            case = items_case(level, small_world(codebook, items, 4), 1 if level == 1 else rows, min(width, codebook))
            yield Trial(case)
            logits, scores, *others = case.tensors("cpu")
            logits[0, :5], logits[-1, 3], scores[0, 0] = -torch.inf, torch.nan, -torch.inf
            yield Trial(case, inputs=(logits.mul(0.5).round(), scores.round(), *others))

    return KernelCases(ragged=trials)
