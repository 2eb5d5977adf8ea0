"""A synthetic catalogue and behaviour log with structure that can be learned, for the demo and for tests.

Items belong to topics and carry unique semantic IDs. Users have a style and a few interests, and move from one
to the next; what they choose is skewed by popularity. Everything follows from one seed.

Letters in names: n users, T steps of a behaviour log, I items, C topics, Y styles, F feature width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .config import LEVELS
from .requests import Requests, offsets_of

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
        favourites: Items of a topic a style clearly prefers; the others share `rest` of the last favourite's likelihood.
        drift: Probability per step that a user turns to another interest.
        interests: Topics a user returns to.
        skew: Exponent of the Zipf laws of topics and of items.
        noise: Standard deviation of the noise on profile features, relative to that of an embedding.
        static, short_term, long_term: Smallest and largest number of context tokens of each pathway.
    """

    topics: int = 24
    items_per_topic: int = 16
    styles: int = 3
    codebook: int = 64
    embed_dim: int = 20
    focus: float = 0.68
    ratio: float = 0.75
    favourites: int = 10
    rest: float = 0.25
    drift: float = 0.04
    interests: int = 3
    skew: float = 0.6
    noise: float = 0.3
    static: tuple[int, int] = (1, 3)
    short_term: tuple[int, int] = (3, 8)
    long_term: tuple[int, int] = (0, 24)


@dataclass(frozen=True, eq=False)
class Catalogue:
    """Items 0 to I - 1. Topic c owns the items of one slice; `preference_YCI[y, c]` is a distribution over all items.

    Args:
        sids_I3: Semantic IDs, unique, int64.
        topic_I: Topic of each item, int64.
        popularity_I: Share of each item in unfocused behaviour, sums to 1.
        topic_weight_C: How many users take an interest in each topic, sums to 1.
        preference_YCI: What a user of a style chooses within a topic.
        features_IF: Three semantic-ID embeddings side by side, values exact in FP16.
        style_features_YF: Profile features of each style, likewise.
    """

    world: World
    sids_I3: _Ints
    topic_I: _Ints
    popularity_I: _Floats
    topic_weight_C: _Floats
    preference_YCI: _Floats
    features_IF: _Floats
    style_features_YF: _Floats


def make_catalogue(world: World, seed: int) -> Catalogue:
    """A catalogue of `topics * items_per_topic` items; equal arguments give equal catalogues."""
    assert world.topics <= world.codebook
    assert world.favourites <= world.items_per_topic
    rng = np.random.default_rng([seed, 0])
    topic_I = np.repeat(np.arange(world.topics), world.items_per_topic)
    sids_I3 = _semantic_ids(world, topic_I, rng)
    tables = _fp16(rng.standard_normal((LEVELS, world.codebook, world.embed_dim)))
    width = LEVELS * world.embed_dim
    return Catalogue(
        world=world,
        sids_I3=sids_I3,
        topic_I=topic_I,
        popularity_I=rng.permutation(_zipf(len(topic_I), world.skew)),
        topic_weight_C=rng.permutation(_zipf(world.topics, world.skew)),
        preference_YCI=_preferences(world, rng),
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
    likelihood[world.favourites :] *= world.rest
    likelihood /= likelihood.sum()
    preference = np.zeros((world.styles, world.topics, world.topics * world.items_per_topic))
    for style in range(world.styles):
        for topic in range(world.topics):
            own = topic * world.items_per_topic + rng.permutation(world.items_per_topic)
            preference[style, topic, own] = likelihood
    return preference


def make_requests(catalogue: Catalogue, count: int, seed: int, *, first_user: int = 0) -> Requests:
    """One request per user, with the item the user chose next as its target.

    Args:
        catalogue: From `make_catalogue`.
        count: Users.
        seed: Equal arguments give equal requests; other seeds give other users.
        first_user: Number of the first user, for the request ids. Default: 0.
    """
    world = catalogue.world
    rng = np.random.default_rng([seed, 1])
    style_n = rng.integers(world.styles, size=count)
    interests = np.stack([rng.choice(world.topics, world.interests, replace=False, p=catalogue.topic_weight_C) for _ in range(count)])
    items_nT = _behaviour(catalogue, style_n, interests, rng)
    lengths_n3 = np.stack([rng.integers(low, high + 1, count) for low, high in (world.static, world.short_term, world.long_term)], 1)
    contexts = []
    for user in range(count):
        static, short, long = lengths_n3[user]
        history = items_nT[user, -1 - short - long : -1]
        profile = _profile(catalogue, style_n[user], interests[user], static, rng)
        contexts += [profile, catalogue.features_IF[history[long:]], catalogue.features_IF[history[:long]]]
    return Requests(
        ids=[f"user-{first_user + user:06d}" for user in range(count)],
        values_NF=np.concatenate(contexts).astype(np.float32),
        offsets=offsets_of(lengths_n3),
        lengths_n3=lengths_n3,
        targets_n3=catalogue.sids_I3[items_nT[:, -1]],
    )


def _behaviour(catalogue: Catalogue, style_n: _Ints, interests: _Ints, rng: np.random.Generator) -> _Ints:
    """Items [n, T] that users chose one after the other; the last one is the target."""
    world, count = catalogue.world, len(style_n)
    items_nT = np.empty((count, world.short_term[1] + world.long_term[1] + 1), np.int64)
    current_n = interests[:, 0]
    cumulative_preference = catalogue.preference_YCI.cumsum(-1)
    cumulative_popularity = catalogue.popularity_I.cumsum()
    for step in range(items_nT.shape[1]):
        turns_n = rng.random(count) < world.drift
        current_n = np.where(turns_n, interests[np.arange(count), rng.integers(world.interests, size=count)], current_n)
        focused_n = rng.random(count) < world.focus
        cumulative_nI = np.where(focused_n[:, None], cumulative_preference[style_n, current_n], cumulative_popularity)
        items_nT[:, step] = np.minimum((cumulative_nI < rng.random((count, 1))).sum(1), len(catalogue.topic_I) - 1)
    return items_nT


def _profile(catalogue: Catalogue, style: int, interests: _Ints, count: int, rng: np.random.Generator) -> _Floats:
    """Static tokens: first the style, then interests of the user, all with noise."""
    world = catalogue.world
    means = [catalogue.features_IF[catalogue.topic_I == topic].mean(0) for topic in interests[: count - 1]]
    tokens = np.stack([catalogue.style_features_YF[style], *means])[:count]
    return _fp16(tokens + world.noise * rng.standard_normal(tokens.shape))


def _zipf(count: int, exponent: float) -> _Floats:
    weight = np.arange(1, count + 1) ** -exponent
    return weight / weight.sum()


def _fp16(values: _Floats) -> _Floats:
    """Values that FP16 holds exactly, so that no engine sees other inputs than the reference."""
    return values.astype(np.float16).astype(np.float64)
