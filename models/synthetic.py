"""A synthetic catalogue and behavior log with structure that can be learned, for the demo and for tests.

Items belong to topics and carry unique semantic IDs. Users have a style and a few interests, and move from one
to the next; what they choose is skewed by popularity. Everything follows from one seed.

Letters in names: n users, T steps of a behavior log, I items, J items of a topic, C topics, Y styles, F feature width, X interests,
P profile tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..core.artifacts import atomic_file
from .config import LEVELS
from .requests import Requests, offsets_of

_USERS_AT_ONCE = 1024

_Floats = NDArray[np.float64]
_Ints = NDArray[np.int64]


@dataclass(frozen=True)
class World:
    """The knobs of the synthetic world; the defaults are those of the demo.

    Args:
        topics, items_per_topic, styles: Size of the catalogue, and how many tastes there are. A style orders the items of a topic.
        codebook, embed_dim: Of the semantic IDs and of their embeddings; the model's configuration must agree.
        focus: Probability that a user chooses an item of the current interest; otherwise any popular item.
        ratio: Likelihood of a topic's next best item relative to the one before.
        head: Extra factor of a topic's best item.
        favorites: Items of a topic a style clearly prefers; the others share `rest` of the last favorite's likelihood.
        drift: Probability per step that a user turns to another interest.
        interests: Topics a user returns to.
        skew: Exponent of the Zipf laws of topics and of items.
        popular_topics: Whether unfocused users choose from popular topics more often: an item's popularity then has its topic's weight
            as a factor. In a large world the first token would tell nothing about popularity otherwise.
        noise: Standard deviation of the noise on profile features, relative to that of an embedding.
        static, short_term, long_term: Smallest and largest number of context tokens of each pathway.
    """

    topics: int = 24
    items_per_topic: int = 16
    styles: int = 2
    codebook: int = 64
    embed_dim: int = 20
    focus: float = 0.7
    ratio: float = 0.7
    head: float = 1.5
    favorites: int = 10
    rest: float = 0.25
    drift: float = 0.04
    interests: int = 3
    skew: float = 0.6
    popular_topics: bool = False
    noise: float = 0.3
    static: tuple[int, int] = (1, 3)
    short_term: tuple[int, int] = (5, 10)
    long_term: tuple[int, int] = (0, 24)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items 0 to I - 1. Topic c owns the items from c * J on; `preference_YCJ[y, c]` is a distribution over these.

    Args:
        sids_I3: Semantic IDs, unique, int64.
        topic_I: Topic of each item, int64.
        popularity_I: Share of each item in unfocused behavior, sums to 1.
        topic_weight_C: How many users take an interest in each topic, sums to 1.
        preference_YCJ: What a user of a style chooses within a topic.
        features_IF: Three semantic-ID embeddings side by side, values exact in FP16.
        style_features_YF: Profile features of each style, likewise.
    """

    world: World
    sids_I3: _Ints
    topic_I: _Ints
    popularity_I: _Floats
    topic_weight_C: _Floats
    preference_YCJ: _Floats
    features_IF: _Floats
    style_features_YF: _Floats


def make_catalogue(world: World, seed: int) -> Catalogue:
    """A catalogue of `topics * items_per_topic` items; equal arguments give equal catalogues."""
    assert world.topics <= world.codebook
    assert world.favorites <= world.items_per_topic <= world.codebook
    assert 1 <= world.static[0] <= world.static[1] <= world.interests + 1
    rng = np.random.default_rng([seed, 0])
    topic_I = np.repeat(np.arange(world.topics), world.items_per_topic)
    sids_I3 = _semantic_ids(world, topic_I, rng)
    tables = _fp16(rng.standard_normal((LEVELS, world.codebook, world.embed_dim)))
    width = LEVELS * world.embed_dim
    popularity_I = rng.permutation(_zipf(len(topic_I), world.skew))
    topic_weight_C = rng.permutation(_zipf(world.topics, world.skew))
    if world.popular_topics:
        popularity_I *= topic_weight_C[topic_I]
    return Catalogue(
        world=world,
        sids_I3=sids_I3,
        topic_I=topic_I,
        popularity_I=popularity_I / popularity_I.sum(),
        topic_weight_C=topic_weight_C,
        preference_YCJ=_preferences(world, rng),
        features_IF=np.concatenate([tables[level, sids_I3[:, level]] for level in range(LEVELS)], 1),
        style_features_YF=_fp16(rng.standard_normal((world.styles, width))),
    )


def _semantic_ids(world: World, topic_I: _Ints, rng: np.random.Generator) -> _Ints:
    """Topic in the first token, a handful of groups per topic in the second, the third tells the items of a group apart."""
    first = rng.permutation(world.codebook)[topic_I]
    groups = max(1, world.items_per_topic // 4)
    seconds = np.stack([rng.permutation(world.codebook)[:groups] for _ in range(world.topics)])
    place = np.arange(len(topic_I)) % world.items_per_topic
    second = seconds[topic_I, place % groups]
    thirds = np.stack([rng.permutation(world.codebook)[: world.items_per_topic] for _ in range(world.topics)])
    return np.stack([first, second, thirds[topic_I, place]], 1)


def _preferences(world: World, rng: np.random.Generator) -> _Floats:
    likelihood = world.ratio ** np.arange(world.items_per_topic)
    likelihood[0] *= world.head
    likelihood[world.favorites :] *= world.rest
    likelihood /= likelihood.sum()
    preference_YCJ = np.zeros((world.styles, world.topics, world.items_per_topic))
    for style in range(world.styles):
        for topic in range(world.topics):
            preference_YCJ[style, topic, rng.permutation(world.items_per_topic)] = likelihood
    return preference_YCJ


def write_catalogue(path: Path, catalogue: Catalogue) -> None:
    """Write a catalogue as models/catalogue.py reads it, a topic being a category; beside that `topic` int32 and `popularity` double.

    Raises:
        ArtifactError: The disk is full or the folder cannot be written.
    """
    columns = {
        "item_id": pa.array(np.arange(len(catalogue.topic_I))),
        **{f"sid_{level + 1}": pa.array(catalogue.sids_I3[:, level], pa.int32()) for level in range(LEVELS)},
        "categories": pa.array(np.uint64(1) << (catalogue.topic_I % 64).astype(np.uint64)),
        "topic": pa.array(catalogue.topic_I, pa.int32()),
        "popularity": pa.array(catalogue.popularity_I, pa.float64()),
    }
    with atomic_file(path) as temporary:
        pq.write_table(pa.table(columns), temporary)


@dataclass(frozen=True, eq=False)
class BehaviorLog:
    """What users did, as numbers of items; `requests_of` turns it into requests.

    Args:
        catalogue: The items.
        items_nT: Items each user chose one after the other, int64; the last one is the target.
        lengths_n3: Tokens of each pathway of a user's context, int64. The items before the target fill it, the latest ones short-term.
        profile_nPF: Static tokens; a user's context takes the first of them.
    """

    catalogue: Catalogue
    items_nT: _Ints
    lengths_n3: _Ints
    profile_nPF: _Floats

    def __len__(self) -> int:
        return len(self.items_nT)


def make_log(catalogue: Catalogue, count: int, seed: int) -> BehaviorLog:
    """The log of `count` users; equal arguments give equal logs, other seeds other users."""
    world = catalogue.world
    rng = np.random.default_rng([seed, 1])
    style_n = rng.integers(world.styles, size=count)
    interests_nX = _interests(catalogue, count, rng)
    items_nT = _behavior(catalogue, style_n, interests_nX, rng)
    lengths_n3 = np.stack([rng.integers(low, high + 1, count) for low, high in (world.static, world.short_term, world.long_term)], 1)
    return BehaviorLog(catalogue, items_nT, lengths_n3, _profiles(catalogue, style_n, interests_nX, rng))


def requests_of(log: BehaviorLog, *, first_user: int = 0) -> Requests:
    """One request per user, with the item the user chose next as its target; `first_user` is its number in the request ids."""
    catalogue, contexts = log.catalogue, []
    for user, (static, short, long) in enumerate(log.lengths_n3):
        history = log.items_nT[user, -1 - short - long : -1]
        contexts += [log.profile_nPF[user, :static], catalogue.features_IF[history[long:]], catalogue.features_IF[history[:long]]]
    return Requests(
        ids=[f"user-{first_user + user:06d}" for user in range(len(log))],
        values_NF=np.concatenate(contexts).astype(np.float32),
        offsets=offsets_of(log.lengths_n3),
        lengths_n3=log.lengths_n3,
        targets_n3=catalogue.sids_I3[log.items_nT[:, -1]],
    )


def make_requests(catalogue: Catalogue, count: int, seed: int, *, first_user: int = 0) -> Requests:
    """One request per user of a new log, with the item the user chose next as its target.

    Args:
        catalogue: From `make_catalogue`.
        count: Users.
        seed: Equal arguments give equal requests; other seeds give other users.
        first_user: Number of the first user, for the request ids. Default: 0.
    """
    return requests_of(make_log(catalogue, count, seed), first_user=first_user)


def _interests(catalogue: Catalogue, count: int, rng: np.random.Generator) -> _Ints:
    """Different topics [n, X] of each user, drawn by weight without replacement (the Gumbel top-k trick)."""
    world, weight_C = catalogue.world, np.log(catalogue.topic_weight_C)
    chosen = []
    for first in range(0, count, _USERS_AT_ONCE):  # a key per user and topic: those of all users would not fit in memory
        keys = weight_C + rng.gumbel(size=(min(_USERS_AT_ONCE, count - first), world.topics))
        best = np.argpartition(-keys, world.interests - 1, axis=1)[:, : world.interests]
        chosen.append(np.take_along_axis(best, np.argsort(-np.take_along_axis(keys, best, 1), axis=1), 1))
    return np.concatenate(chosen)


def _behavior(catalogue: Catalogue, style_n: _Ints, interests_nX: _Ints, rng: np.random.Generator) -> _Ints:
    """Items [n, T] that users chose one after the other; the last one is the target."""
    world, count = catalogue.world, len(style_n)
    preferred = _cumulative(catalogue.preference_YCJ.reshape(-1, world.items_per_topic))
    popular = _cumulative(catalogue.popularity_I[None])
    items_nT = np.empty((count, world.short_term[1] + world.long_term[1] + 1), np.int64)
    current_n = interests_nX[:, 0]
    for step in range(items_nT.shape[1]):
        turns_n = rng.random(count) < world.drift
        current_n = np.where(turns_n, interests_nX[np.arange(count), rng.integers(world.interests, size=count)], current_n)
        focused_n = rng.random(count) < world.focus
        chance_n = rng.random(count)
        own_n = current_n * world.items_per_topic + _draw(preferred, style_n * world.topics + current_n, chance_n)
        items_nT[:, step] = np.where(focused_n, own_n, _draw(popular, np.zeros_like(current_n), chance_n))
    return items_nT


def _cumulative(distributions: _Floats) -> _Floats:
    """The cumulative distributions, one above the other: row r rises from r to r + 1."""
    return np.asarray(distributions.cumsum(1) + np.arange(len(distributions))[:, None])


def _draw(cumulative: _Floats, row_n: _Ints, chance_n: _Floats) -> _Ints:
    """One draw from the distribution of each row for a number in [0, 1): one search in all cumulative distributions end to end."""
    choices = cumulative.shape[1]
    found = np.searchsorted(cumulative.ravel(), row_n + chance_n, side="right") - row_n * choices
    return np.asarray(found.clip(0, choices - 1), np.int64)


def _profiles(catalogue: Catalogue, style_n: _Ints, interests_nX: _Ints, rng: np.random.Generator) -> _Floats:
    """Static tokens [n, P, F]: first the style, then the user's interests as the mean of their items, all with noise."""
    world = catalogue.world
    mean_CF = catalogue.features_IF.reshape(world.topics, world.items_per_topic, -1).mean(1)
    shown_nX = interests_nX[:, : world.static[1] - 1]
    tokens = np.concatenate([catalogue.style_features_YF[style_n][:, None], mean_CF[shown_nX]], 1)
    return _fp16(tokens + world.noise * rng.standard_normal(tokens.shape))


def _zipf(count: int, exponent: float) -> _Floats:
    weight = np.arange(1, count + 1, dtype=np.float64) ** -exponent
    return np.asarray(weight / weight.sum())


def _fp16(values: _Floats) -> _Floats:
    """Values that FP16 holds exactly, so that no engine sees other inputs than the reference."""
    return values.astype(np.float16).astype(np.float64)
