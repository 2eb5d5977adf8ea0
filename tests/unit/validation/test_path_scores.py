"""Items are scored once: known ones are looked up, the rest goes in batches of slots."""

from __future__ import annotations

import numpy as np
from onerec_trt.validation.path_scores import path_scores


def truth(rows: np.ndarray, sids: np.ndarray) -> np.ndarray:
    return (rows[:, None, None] * 100 + sids).astype(np.float32)


def test_what_is_known_is_not_scored_again_and_the_rest_once() -> None:
    rng = np.random.default_rng(0)
    wanted, known = rng.integers(0, 4, (5, 12, 3)), rng.integers(0, 4, (5, 6, 3))
    wanted[3] = known[3][rng.integers(0, 6, 12)]
    scored: list[tuple[int, ...]] = []

    def score(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        assert items.shape == (len(rows), 4, 3)
        scored.extend(
            (int(row), *item) for row, slots in zip(rows, items.tolist(), strict=True) for item in {tuple(each) for each in slots}
        )
        return truth(rows, items)

    everyone = np.arange(5)
    found = path_scores(wanted, known, truth(everyone, known), 4, score)
    assert np.array_equal(found, truth(everyone, wanted))
    assert len(set(scored)) == len(scored)
    assert not any(row == 3 for row, *_ in scored)
    assert not {(row, *item) for row in range(5) for item in known[row].tolist()} & set(scored)


def test_nothing_new_runs_nothing() -> None:
    known = np.array([[[1, 2, 3], [4, 5, 6]]])

    def refuse(rows: np.ndarray, items: np.ndarray) -> np.ndarray:
        raise AssertionError("scored again")

    found = path_scores(known[:, ::-1], known, truth(np.array([0]), known), 2, refuse)
    assert np.array_equal(found, truth(np.array([0]), known[:, ::-1]))
