"""What is kept per shape: earned at the second use, bounded, the least recently used goes first."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.runtime.shape_cache import ShapeCache


def test_a_place_is_earned_at_the_second_use() -> None:
    cache: ShapeCache[str, int] = ShapeCache(2)
    assert [cache.earns_place(key) for key in "abab"] == [False, False, True, True]


def test_the_one_not_used_for_longest_gives_way() -> None:
    cache: ShapeCache[str, int] = ShapeCache(2)
    for key, value in (("a", 1), ("b", 2)):
        assert cache.make_room() is None
        cache.put(key, value)
    assert cache.get("a") == 1
    assert cache.make_room() == 2
    cache.put("c", 3)
    assert [cache.get(key) for key in "abc"] == [1, None, 3]


def test_an_evicted_key_must_earn_its_place_again() -> None:
    cache: ShapeCache[str, int] = ShapeCache(1)
    cache.earns_place("a")
    assert cache.earns_place("a")
    cache.put("a", 1)
    assert cache.make_room() == 1
    cache.put("b", 2)
    assert not cache.earns_place("a")


def test_no_capacity_keeps_nothing() -> None:
    cache: ShapeCache[str, int] = ShapeCache(0)
    assert not any(cache.earns_place("a") for _ in range(5))


@given(st.lists(st.integers(0, 30), max_size=200), st.integers(1, 4))
def test_it_stays_bounded_and_returns_what_was_put(uses: list[int], capacity: int) -> None:
    cache: ShapeCache[int, str] = ShapeCache(capacity)
    for key in uses:
        value = cache.get(key)
        assert value in (None, f"value {key}")
        if value is None and cache.earns_place(key):
            cache.make_room()
            cache.put(key, f"value {key}")
        assert len(cache) <= capacity
        assert len(cache._seen) <= 8 * capacity
