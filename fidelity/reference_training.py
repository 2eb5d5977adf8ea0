"""Training of a reference model on a device, in parts: a part ends when its time is over, and the next one goes on from the saved state.

The order of users, the schedule and the first weights follow from the seed, so that parts of any length give the same model, as far as
the device adds sums in one order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..core.artifacts import atomic_file
from ..core.errors import ArtifactError
from ..models.experts_at_once import experts_at_once
from ..models.log_batches import LogBatches
from ..models.onerec import OneRec
from ..models.requests import Requests
from ..models.training import balance_experts, initialized, next_item_loss, parameter_groups
from .references import ReferenceModel

STATE_FILE = "training.pt"
FLAT = 0.01  # relative fall of the loss, last tenth of the steps against the tenth before, below which it counts as flat


@dataclass
class Progress:
    """How far a training is. `losses`: mean loss in nat of every `loss_steps` steps. `seconds`: time of its steps, all parts together."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0


def late_fall(losses: Sequence[float]) -> float:
    """How far the mean of the last tenth of the losses lies below that of the tenth before, as a share; 1 where there are too few."""
    tenth = max(1, len(losses) // 10)
    before, last = losses[-2 * tenth : -tenth], losses[-tenth:]
    return 1 - (sum(last) / len(last)) / (sum(before) / len(before)) if before else 1.0


def is_flat(losses: Sequence[float]) -> bool:
    """Whether a loss has stopped falling."""
    return late_fall(losses) < FLAT


class ReferenceTraining:
    """A training that can stop and go on.

    Args:
        reference: Model and schedule.
        seed: Of weights and order of users.
        folder: Existing; keeps the state between parts.
        device: Where it runs; on a GPU with BF16 products.

    Raises:
        ArtifactError: The saved state is damaged, or of another reference or seed.
    """

    def __init__(self, reference: ReferenceModel, seed: int, folder: Path, device: torch.device) -> None:
        self.reference, self.seed, self.device = reference, seed, device
        self._file = folder / STATE_FILE
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = initialized(reference.config).to(device)
        schedule = reference.schedule
        groups = parameter_groups(self.model, schedule.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, betas=(0.9, 0.95), fused=device.type == "cuda")
        self.progress = Progress()
        if self._file.exists():
            self._load()

    @property
    def finished(self) -> bool:
        return self.progress.step >= self.reference.schedule.steps

    def run(self, batches: LogBatches, seconds: float, say: Callable[[str], None]) -> None:
        """Learn until the schedule or the time is over, and save the state."""
        started, since_step, since = time.monotonic(), self.progress.step, time.monotonic()
        total = torch.zeros((), device=self.device)
        with experts_at_once(self.model), _fast_attention(self.device):
            for users_B in self._users(len(batches)):
                total += self._learn(batches, users_B)
                if self.progress.step % self.reference.schedule.loss_steps == 0:
                    self._note(total, say, started)
                    total.zero_()
                    self.progress.seconds += time.monotonic() - since
                    since = time.monotonic()
                    if since - started > seconds:
                        break
        self.save()
        say(f"{self.progress.step - since_step} steps in {time.monotonic() - started:.0f} s, state saved")

    def _learn(self, batches: LogBatches, users_B: Tensor) -> Tensor:
        schedule, step = self.reference.schedule, self.progress.step
        factor = schedule.factor(step)
        for group in self._optimizer.param_groups:
            group["lr"] = schedule.learning_rate * factor
        mixed = torch.autocast(self.device.type, torch.bfloat16) if self.device.type == "cuda" else nullcontext()
        with mixed:
            loss = next_item_loss(self.model, batches.batch(users_B))
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), schedule.clip_norm)
        self._optimizer.step()
        balance_experts(self.model, schedule.balancing_rate * factor)
        self.progress.step += 1
        return loss.detach().float()

    def _users(self, users: int) -> Iterator[Tensor]:
        """Users of each step that is left: every epoch is a permutation of its own."""
        size, steps = self.reference.schedule.batch_size, self.reference.schedule.steps
        per_epoch = users // size
        assert per_epoch, f"{users} users do not fill a batch of {size}"
        for epoch in range(self.progress.step // per_epoch, math.ceil(steps / per_epoch)):
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            order = torch.randperm(users, generator=generator).to(self.device)
            for place in range(self.progress.step % per_epoch, min(per_epoch, steps - epoch * per_epoch)):
                yield order[place * size : (place + 1) * size]

    def _note(self, total: Tensor, say: Callable[[str], None], started: float) -> None:
        loss = float(total) / self.reference.schedule.loss_steps
        if not math.isfinite(loss):
            raise ArtifactError(
                f"the training diverged at step {self.progress.step}: the loss is {loss}",
                where=str(self._file),
                hint="remove the state and train with a lower learning rate",
            )
        self.progress.losses.append(loss)
        if len(self.progress.losses) % 4 == 0:
            say(f"step {self.progress.step}, loss {loss:.4f}, {time.monotonic() - started:.0f} s")

    def save(self) -> None:
        """Write the state; it appears whole or not at all."""
        state = {
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "progress": asdict(self.progress),
            "identity": self._identity(),
        }
        with atomic_file(self._file) as temporary:
            torch.save(state, temporary)

    def _load(self) -> None:
        state: dict[str, Any] = torch.load(self._file, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            hint = "remove it to begin anew, or choose another folder"
            raise ArtifactError("the saved state is that of another training", where=str(self._file), hint=hint)
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self.progress = Progress(**state["progress"])

    def _identity(self) -> dict[str, Any]:
        reference = self.reference
        return {"config": reference.config.model_dump(mode="json"), "schedule": asdict(reference.schedule), "seed": self.seed}


@torch.no_grad()
def heldout_loss(model: OneRec, requests: Requests, batch_size: int, device: torch.device) -> float:
    """Mean cross-entropy in nat over the three tokens of the targets, in FP32."""
    losses, counts = [], []
    for batch in requests.batches(batch_size):
        assert batch.targets_B3 is not None
        moved = batch._replace(
            features_BSF=batch.features_BSF.to(device), lengths_B3=batch.lengths_B3.to(device), targets_B3=batch.targets_B3.to(device)
        )
        losses.append(float(next_item_loss(model, moved)))
        counts.append(len(batch.lengths_B3))
    return sum(loss * count for loss, count in zip(losses, counts, strict=True)) / sum(counts)


@contextmanager
def _fast_attention(device: torch.device) -> Iterator[None]:
    """Let attention that falls back to plain products keep BF16 on a GPU: the context is long and the queries are three."""
    before = torch.backends.cuda.fp16_bf16_reduction_math_sdp_allowed()
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(device.type == "cuda" or before)
    try:
        yield
    finally:
        torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(before)
