"""When an instance takes its next batch from the server's queue: late enough that the batch holds all that waits.

The server hands whatever waits to an instance that is free. Taken while the batch of another instance runs, that is a request or two,
which then wait for the GPU while those that come after them wait in the queue: small batches and large ones in turn. So an instance
comes back for its next batch only when there is just time enough to prepare it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from .gpu_turns import GpuTurns

_LOOK_EVERY_S = 0.001
_FIRST_LEAD_S = 0.01
_CAUTION = 2.0  # a batch that is ready too late leaves the GPU without work; one that is ready too early is a little smaller
_FORGETTING = 0.9  # with every batch: the lead is that of the slowest preparation of late


class Pacing:
    """What an instance knows of its own speed, and of the turns on its GPU.

    Args:
        turns: Of the GPU.
        full: Requests of the largest batch that the server puts together.
    """

    def __init__(self, turns: GpuTurns, full: int) -> None:
        self._turns, self._full = turns, full
        self._took: dict[int, float] = {}  # seconds of the last turn by requests in it
        self._lead = _FIRST_LEAD_S  # seconds before the end of a turn at which the next batch is taken
        self._requests = 0  # of the last turn
        self._back = 0.0  # since when it has been free; 0 where it did not hold off

    @property
    def lead(self) -> float:
        """Seconds before the end of another instance's turn at which this one takes its next batch. Learned: long enough to prepare it."""
        return self._lead

    @contextmanager
    def turn(self, requests: int) -> Iterator[None]:
        """The turn of a batch of so many requests, which is ready."""
        self._learn(requests)
        self._requests = requests
        with self._turns.turn(self._expected(requests)):
            begin = time.monotonic()
            yield
            self._took[requests] = time.monotonic() - begin

    def early(self) -> bool:
        """Whether nobody needs the next batch yet: another instance has the next turn, or one that lasts longer than the lead.

        After a full batch it is never too early: as many wait, or a batch too late would cost more than a small one.
        """
        self._turns.leave()  # the batch at hand is answered, with or without a turn
        if self._requests >= self._full:
            return False
        return self._turns.others_lined_up() or self._turns.remaining() > self._lead

    def hold_off(self) -> None:
        """Wait until the next batch is to be taken. A turn that ends early, or whose process is gone, ends the wait.

        Who has the next turn may have nothing to do: that is waited for as long as it would take to prepare something.
        """
        patience = time.monotonic() + self._lead
        while self._turns.remaining() > self._lead or (self._turns.others_lined_up() and time.monotonic() < patience):
            time.sleep(_LOOK_EVERY_S)
        self._back = time.monotonic()

    def back(self) -> None:
        """The instance is free for a batch: the first one, once it is warm, or the next one."""
        self._turns.line_up()

    def _learn(self, requests: int) -> None:
        """How long it took from being free to being ready. A single request may have come later, so it tells nothing."""
        if self._back and requests > 1:
            self._lead = max((time.monotonic() - self._back) * _CAUTION, self._lead * _FORGETTING)
        self._back = 0.0

    def _expected(self, requests: int) -> float:
        """As the last batch of about this size; 0 before the first one."""
        return self._took[min(self._took, key=lambda known: abs(known - requests))] if self._took else 0.0
