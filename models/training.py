"""Training of a small OneRec-V2 in FP32 on CPU: next-item cross-entropy, experts balanced without an auxiliary loss."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.errors import RequestError
from ..core.progress import progress_bar
from .config import LEVELS, OneRecConfig
from .onerec import MixtureOfExperts, OneRec
from .requests import Batch, Requests

INITIAL_STD = 0.02


@dataclass(frozen=True)
class TrainingOptions:
    """How long and how fast to learn; the defaults are those of the demo.

    `balancing_rate`: step of an expert's selection bias after each batch (arXiv 2412.19437, section 2.1.2); it falls
    with the learning rate, so that the routing of the finished model is at rest.
    """

    epochs: int = 3
    batch_size: int = 256
    learning_rate: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    clip_norm: float = 1.0
    balancing_rate: float = 0.01
    seed: int = 0


def train(config: OneRecConfig, requests: Requests, options: TrainingOptions | None = None) -> OneRec:
    """A model trained on requests with targets, in evaluation mode; equal arguments give equal weights on one machine.

    Raises:
        RequestError: The requests have no targets.
    """
    options = options or TrainingOptions()
    if requests.targets_n3 is None:
        raise RequestError("training needs targets", hint="give requests with a target column")
    with _repeatable(options.seed):
        model = initialized(config)
        _learn(model, requests, options)
    return model.eval()


def _learn(model: OneRec, requests: Requests, options: TrainingOptions) -> None:
    optimizer = torch.optim.AdamW(parameter_groups(model, options.weight_decay), lr=options.learning_rate, betas=(0.9, 0.95))
    steps = options.epochs * math.ceil(len(requests) / options.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: learning_rate_factor(step, steps, options.warmup_steps))
    with progress_bar("training", steps) as advance:
        for batch in _shuffled_batches(requests, options):
            optimizer.zero_grad(set_to_none=True)
            next_item_loss(model, batch).backward()
            nn.utils.clip_grad_norm_(model.parameters(), options.clip_norm)
            optimizer.step()
            balance_experts(model, options.balancing_rate * float(schedule.get_last_lr()[0]) / options.learning_rate)
            schedule.step()
            advance()


@contextmanager
def _repeatable(seed: int) -> Iterator[None]:
    """Seeded random numbers, and one thread: sums are then made in one order whatever the number of cores.

    A model this small loses nothing by it, and on a busy machine threads that wait for each other cost far more.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.set_num_threads(threads)


def initialized(config: OneRecConfig) -> OneRec:
    """A new model: normal weights of 0.02, those that write to the residual stream smaller by the square root of their number."""
    model = OneRec(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            writes_to_stream = name.endswith((".o.weight", ".down.weight"))
            nn.init.normal_(parameter, std=INITIAL_STD / math.sqrt(3 * config.n_layers) if writes_to_stream else INITIAL_STD)
    return model


def next_item_loss(model: OneRec, batch: Batch) -> Tensor:
    """Mean cross-entropy in nat over the three tokens of the targets."""
    assert batch.targets_B3 is not None
    logits_BTV = model(batch.features_BSF, batch.lengths_B3, batch.targets_B3[:, None, : LEVELS - 1])[:, 0]
    return F.cross_entropy(logits_BTV.flatten(0, 1), batch.targets_B3.flatten())


@torch.no_grad()
def balance_experts(model: OneRec, rate: float) -> None:
    """Raise the selection bias of experts that got fewer tokens than the mean in the last call, lower that of the others."""
    for module in model.modules():
        if isinstance(module, MixtureOfExperts):
            assert module.last_selected is not None
            selected = module.last_selected.float()
            module.selection_bias += rate * torch.sign(selected.mean() - selected)


def parameter_groups(model: OneRec, weight_decay: float) -> list[dict[str, object]]:
    """Matrices with weight decay, norms without, as an optimizer takes them."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    norms = [p for p in model.parameters() if p.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": norms, "weight_decay": 0.0}]


def learning_rate_factor(step: int, steps: int, warmup: int) -> float:
    """Linear warm-up, then half a cosine down to zero."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _shuffled_batches(requests: Requests, options: TrainingOptions) -> Iterator[Batch]:
    rng = np.random.default_rng(options.seed)
    for _ in range(options.epochs):
        order = rng.permutation(len(requests))
        for first in range(0, len(order), options.batch_size):
            yield requests.batch(order[first : first + options.batch_size].tolist())
