"""The trained references: which synthetic world, which model, and how long it learns.

The worlds are chosen so that hit rates lie well inside 0 and 1 and that likelihoods of neighbors in a ranking differ.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from ..core.errors import RecipeError
from ..models.config import SIZES, MoeConfig, OneRecConfig, parse_config
from ..models.synthetic import World
from ..models.training import learning_rate_factor

Decay = Literal["square", "cosine"]


@dataclass(frozen=True)
class Schedule:
    """How a reference learns: linear warm-up, then down to zero.

    Args:
        steps, batch_size: Of the whole training; users are drawn anew, without replacement, in every epoch.
        balancing_rate: Step of an expert's selection bias after each batch (arXiv 2412.19437, section 2.1.2); it falls with the
            learning rate.
        loss_steps: Steps whose mean is one loss in the figures; between two of them a training may stop.
        decay: Of the learning rate: the square of what is left of the training, or half a cosine. The square is small for longer, so
            that the loss is flat at the end.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup_steps: int
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    balancing_rate: float = 0.003
    loss_steps: int = 50
    decay: Decay = "square"

    def factor(self, step: int) -> float:
        """Of the learning rate at a step."""
        if self.decay == "cosine" or step < self.warmup_steps:
            return learning_rate_factor(step, self.steps, self.warmup_steps)
        return (1 - (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)) ** 2


@dataclass(frozen=True)
class ReferenceModel:
    """One trained reference.

    Args:
        users: Of each split; the training split is a multiple of the shards it is made in.
        beam: Of its recipes.
        keep_fp16: Patterns of layers that each of its recipes keeps in FP16. Default: none.
    """

    config: OneRecConfig
    world: World
    users: dict[str, int]
    schedule: Schedule
    beam: tuple[int, int, int]
    keep_fp16: tuple[str, ...] = ()


FULL_WORLD = World(
    topics=4096,
    items_per_topic=32,
    codebook=8192,
    embed_dim=32,
    focus=0.75,
    drift=0.02,
    interests=4,
    skew=0.8,
    popular_topics=True,
    static=(3, 5),
    short_term=(20, 40),
    long_term=(233, 243),
)
_FULL_USERS = {"train": 1 << 21, "calibration": 512, "heldout": 2048}
_FULL_SCHEDULE = Schedule(steps=4000, batch_size=1024, learning_rate=6e-4, warmup_steps=300)
_FULL_BEAM = (512, 512, 512)
# The first block, attention of the five after it, and what attention over the context gives in all others. With everything in FP8 the
# mixture of experts misses bars; docs/fidelity.md has the errors of its layers.
_MOE_KEEPS = ("blocks.0.*", "blocks.[1-68].cross.*", "blocks.[1-5].self.*", "blocks.*.cross.o")

TOY_WORLD = World(
    topics=16,
    items_per_topic=8,
    favorites=4,
    codebook=32,
    embed_dim=8,
    popular_topics=True,
    static=(1, 3),
    short_term=(3, 6),
    long_term=(4, 8),
)
_TOY_CONFIG = parse_config({"d_model": 32, "n_layers": 2, "n_heads": 2, "d_head": 16, "embed_dim": 8, "codebook": 32, "ffn_hidden": 512})
_TOY_USERS = {"train": 512, "calibration": 64, "heldout": 64}
_TOY_SCHEDULE = Schedule(steps=12, batch_size=64, learning_rate=3e-3, warmup_steps=2, loss_steps=2)

REFERENCES: dict[str, ReferenceModel] = {
    "0.1B": ReferenceModel(SIZES["0.1B"], FULL_WORLD, _FULL_USERS, _FULL_SCHEDULE, _FULL_BEAM),
    "0.1B-moe": ReferenceModel(
        SIZES["0.1B"].with_changes(moe=MoeConfig(experts=16, top_k=3, hidden=640)),
        FULL_WORLD,
        _FULL_USERS,
        _FULL_SCHEDULE,
        _FULL_BEAM,
        _MOE_KEEPS,
    ),
    "toy": ReferenceModel(_TOY_CONFIG, TOY_WORLD, _TOY_USERS, _TOY_SCHEDULE, (16, 16, 16)),
    "toy-moe": ReferenceModel(
        _TOY_CONFIG.with_changes(moe=MoeConfig(experts=4, top_k=2, hidden=32, dense_layers=1)),
        TOY_WORLD,
        _TOY_USERS,
        _TOY_SCHEDULE,
        (16, 16, 16),
        ("blocks.0.cross.*", "blocks.0.self.*"),
    ),
}


def reference_model(size: str, steps: int | None = None, decay: Decay | None = None) -> ReferenceModel:
    """The reference of a name, with another schedule if wanted.

    Args:
        size: A name in REFERENCES.
        steps: Of the training. Default: the reference's own.
        decay: Of the learning rate. Default: the reference's own.

    Raises:
        RecipeError: There is none of this name, or the steps are no whole number of those that make one loss.
    """
    if size not in REFERENCES:
        raise RecipeError(f"there is no reference {size!r}", where="--size", hint=f"choose one of {', '.join(REFERENCES)}")
    reference = REFERENCES[size]
    schedule = replace(reference.schedule, steps=steps or reference.schedule.steps, decay=decay or reference.schedule.decay)
    if schedule.steps % schedule.loss_steps:
        what = f"{steps} steps cannot be divided into losses of {schedule.loss_steps} steps each"
        raise RecipeError(what, where="--steps", hint=f"choose a multiple of {schedule.loss_steps}")
    return replace(reference, schedule=schedule)
