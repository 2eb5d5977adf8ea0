"""The synthetic world: unique items, equal seeds give equal data, and the structure that is promised is there."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from onerec_trt.models.catalogue import read_catalogue
from onerec_trt.models.config import parse_config
from onerec_trt.models.requests import Requests, read_requests, write_requests
from onerec_trt.models.synthetic import Catalogue, World, make_catalogue, make_requests, write_catalogue

WORLD = World()


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return make_catalogue(WORLD, seed=3)


@pytest.fixture(scope="module")
def requests(catalogue: Catalogue) -> Requests:
    return make_requests(catalogue, 3000, seed=5)


def target_items(catalogue: Catalogue, requests: Requests) -> np.ndarray:
    place = {tuple(sid): item for item, sid in enumerate(catalogue.sids_I3.tolist())}
    assert requests.targets_n3 is not None
    return np.array([place[tuple(sid)] for sid in requests.targets_n3.tolist()])


@pytest.mark.parametrize("world", [World(), World(topics=64, items_per_topic=64), World(topics=3, items_per_topic=3, favorites=2)])
def test_semantic_ids_are_unique_and_within_the_codebook(world: World) -> None:
    sids = make_catalogue(world, seed=0).sids_I3
    assert len({tuple(sid) for sid in sids.tolist()}) == len(sids) == world.topics * world.items_per_topic
    assert sids.min() >= 0
    assert sids.max() < world.codebook


def test_the_first_token_is_the_topic_and_groups_share_the_second(catalogue: Catalogue) -> None:
    for topic in range(WORLD.topics):
        sids = catalogue.sids_I3[catalogue.topic_I == topic]
        assert len(set(sids[:, 0].tolist())) == 1
        assert len(set(sids[:, 1].tolist())) == WORLD.items_per_topic // 4


def test_distributions_are_distributions(catalogue: Catalogue) -> None:
    np.testing.assert_allclose(catalogue.preference_YCJ.sum(-1), 1)
    np.testing.assert_allclose([catalogue.popularity_I.sum(), catalogue.topic_weight_C.sum()], 1)


def test_the_favorites_of_a_topic_are_clearly_apart(catalogue: Catalogue) -> None:
    ranked = -np.sort(-catalogue.preference_YCJ, axis=-1)
    gaps = np.log(ranked[..., : WORLD.favorites] / ranked[..., 1 : WORLD.favorites + 1])
    assert gaps.min() > 0.3  # nat; an FP8 model's scores move by about 0.03
    assert gaps[..., -1].min() > 1  # after the tenth


def test_equal_seeds_give_equal_data_and_other_seeds_other_data(catalogue: Catalogue) -> None:
    again = make_catalogue(WORLD, seed=3)
    np.testing.assert_array_equal(again.features_IF, catalogue.features_IF)
    assert not np.array_equal(make_catalogue(WORLD, seed=4).sids_I3, catalogue.sids_I3)
    first, second, other = (make_requests(catalogue, 50, seed=seed) for seed in (5, 5, 6))
    np.testing.assert_array_equal(first.values_NF, second.values_NF)
    assert not np.array_equal(first.targets_n3, other.targets_n3)


def test_features_are_exact_in_fp16_and_pass_the_reader(tmp_path: Path, requests: Requests) -> None:
    np.testing.assert_array_equal(requests.values_NF.astype(np.float16).astype(np.float32), requests.values_NF)
    config = parse_config(
        {"d_model": 8, "n_layers": 1, "n_heads": 1, "d_head": 8, "embed_dim": WORLD.embed_dim, "codebook": WORLD.codebook}
    )
    write_requests(tmp_path / "r.parquet", requests)
    assert read_requests(tmp_path / "r.parquet", config, need_targets=True).ids == requests.ids


def test_contexts_are_ragged_within_their_bounds(requests: Requests) -> None:
    for column, (low, high) in enumerate((WORLD.static, WORLD.short_term, WORLD.long_term)):
        lengths = requests.lengths_n3[:, column]
        assert (lengths.min(), lengths.max()) == (low, high)


def test_behavior_tokens_are_items(catalogue: Catalogue, requests: Requests) -> None:
    known = {row.tobytes() for row in catalogue.features_IF.astype(np.float32)}
    static, short, long = requests.lengths_n3[7]
    tokens = requests.values_NF[requests.offsets[7] : requests.offsets[8]]
    assert len(tokens) == static + short + long
    assert all(token.tobytes() in known for token in tokens[static:])


def test_the_next_item_follows_the_recent_interest(catalogue: Catalogue, requests: Requests) -> None:
    """The topic seen most often among the short-term tokens is that of the target far more often than chance."""
    topic_of = {row.tobytes(): topic for row, topic in zip(catalogue.features_IF.astype(np.float32), catalogue.topic_I, strict=True)}
    target_topic = catalogue.topic_I[target_items(catalogue, requests)]
    agree = 0
    for user in range(len(requests)):
        start = requests.offsets[user] + requests.lengths_n3[user, 0]
        recent = requests.values_NF[start : start + requests.lengths_n3[user, 1]]
        agree += Counter(topic_of[token.tobytes()] for token in recent).most_common(1)[0][0] == target_topic[user]
    assert 0.55 < agree / len(requests) < 0.85


def test_popularity_is_skewed(catalogue: Catalogue, requests: Requests) -> None:
    counts = np.sort(np.bincount(target_items(catalogue, requests), minlength=len(catalogue.topic_I)))[::-1]
    assert counts[: len(counts) // 10].sum() > 0.25 * counts.sum()


def test_users_are_numbered_from_the_first(catalogue: Catalogue) -> None:
    assert make_requests(catalogue, 2, seed=0, first_user=40).ids == ["user-000040", "user-000041"]


def test_the_catalogue_file(tmp_path: Path, catalogue: Catalogue) -> None:
    write_catalogue(tmp_path / "catalogue.parquet", catalogue)
    table = pq.read_table(tmp_path / "catalogue.parquet")
    assert table.column_names == ["item_id", "sid_1", "sid_2", "sid_3", "categories", "topic", "popularity"]
    read = read_catalogue(tmp_path / "catalogue.parquet", catalogue.world.codebook)
    assert read.sids_n3.tolist() == catalogue.sids_I3.tolist()
    assert read.categories_n.tolist() == [1 << topic for topic in catalogue.topic_I.tolist()]
    assert table["topic"].to_pylist() == catalogue.topic_I.tolist()
