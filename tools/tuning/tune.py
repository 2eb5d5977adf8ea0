"""`onerec-trt dev tune`: times candidate tiles of every kernel on this GPU and writes the committed table with the fastest ones in it.

Candidates are compiled ahead of time in parallel processes, timed as a plan runs them, and checked against PyTorch when they win.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.artifacts import write_json
from ...core.errors import BuildError
from ...operators.kernels.registry import FACTORIES, program_of
from ...operators.launch.case import Case, Tuning
from ...operators.launch.compile import Build, compile_many
from ...operators.launch.launch import bind, new_outputs
from ...operators.launch.program import Kernel, Program
from ...operators.launch.tiles import Entry, Tile, Tiles, committed_tiles
from .parity import copies_of, difference_of, this_capability
from .timing import captured

FINALISTS = 4
ROUNDS = 5  # of each finalist
CALLS = 12  # of a sample
DEVICE = "cuda"
MAX_BYTES = 600 << 20  # of tensors in rotation

Say = Callable[[str], None]
Compiled = dict[str, Kernel | BuildError]


@dataclass(frozen=True)
class Tuned:
    """The tile chosen in a search, its time, the time of the tile that the table had, and the first look at every candidate."""

    tuning: Tuning
    tile: Tile
    microseconds: float
    before_us: float | None
    tried_us: dict[Tile, float]

    @property
    def case(self) -> Case:
        return self.tuning.case

    def entries(self, capability: str) -> list[Entry]:
        """What the table gets."""
        return self.case.entries(capability, self.tile, self.tuning.families)

    def as_json(self) -> dict[str, Any]:
        """Every candidate with its time, fastest first."""
        tried = [{"tile": repr(tile), "microseconds": round(time, 2)} for tile, time in sorted(self.tried_us.items(), key=lambda x: x[1])]
        return {"operator": self.case.operator, "shape": self.case.label, "attributes": self.case.attributes, "tried": tried}

    def __str__(self) -> str:
        before = "" if self.before_us is None else f", before {self.before_us:.1f}"
        return f"{self.case.operator} {self.case.label} {self.case.attributes or ''}: {self.microseconds:.1f} us{before}; {self.tile}"


def table_with(tuning: Tuning, tile: Tile, capability: str) -> Tiles:
    """A table in which a search's families have this tile alone; launches beside it keep their committed ones."""
    others = [entry for entry in committed_tiles().entries if entry.family not in tuning.families]
    return Tiles((*others, *tuning.case.entries(capability, tile, tuning.families)))


def tune(out: Path, log: Path | None = None, cache: Path | None = None, say: Say = print) -> list[Tuned]:
    """Tune every kernel for the GPU at hand.

    Args:
        out: Gets the new table. The installed one is only read.
        log: Gets the time of every candidate.
        cache: Folder of compiled kernels. Default: the user's.
        say: Is called with each line of progress.

    Raises:
        GpuError: There is no GPU, or it fails.
        BuildError: There are no kernels for it, or no candidate of a case compiles.
        GateError: A winner differs from PyTorch.
    """
    capability = this_capability()
    tiles = committed_tiles()
    torch.manual_seed(0)
    searches = [_Search(tuning, capability, tiles) for tuning in tunings()]
    started = time.perf_counter()
    compiled = _compile_all([build for search in searches for builds in search.builds.values() for build in builds], cache)
    say(f"{len(compiled)} kernels compiled in {time.perf_counter() - started:.0f} s")
    tuned = []
    for search in searches:
        tuned.append(search.best(compiled))
        say(str(tuned[-1]))
        torch.cuda.empty_cache()
    if log is not None:
        write_json(log, [each.as_json() for each in tuned])
    tiles.with_entries([entry for each in tuned for entry in each.entries(capability)]).write(out)
    return tuned


def tunings() -> Iterator[Tuning]:
    """Every search, kernel by kernel."""
    for factory in FACTORIES.values():
        yield from factory.cases.tuned()


def candidates(case: Case, capability: str) -> Iterable[Tile]:
    """Tiles worth a try."""
    return FACTORIES[case.operator].cases.candidates(case, capability)


def _compile_all(builds: list[Build], cache: Path | None) -> Compiled:
    """Each distinct kernel, by the text of its build, or why it does not compile."""
    distinct = {repr(build): build for build in builds}
    return dict(zip(distinct, compile_many(distinct.values(), cache).values(), strict=True))


class _Search:
    """The candidates of one case. The tile that the table has now is the first of them."""

    def __init__(self, tuning: Tuning, capability: str, tiles: Tiles) -> None:
        self.tuning, self.case, self.capability = tuning, tuning.case, capability
        key = self.case.tile
        assert key is not None, f"{self.case.operator} has no tiles"
        self.now = tiles.tile(capability, tuning.families[0], key.shape, key.rows)
        self.builds = {tile: self._builds(tile) for tile in dict.fromkeys([self.now, *candidates(self.case, capability)])}

    def best(self, compiled: Compiled) -> Tuned:
        """Time all candidates briefly, the fastest again in turns, and check the winner."""
        programs = self._programs(compiled)
        samplers = self._samplers(programs)
        quick = {tile: min(sample(), sample()) for tile, sample in samplers.items()}
        finalists = sorted(quick, key=quick.__getitem__)[:FINALISTS]
        timed = dict.fromkeys([*finalists, *(tile for tile in (self.now,) if tile in quick)])
        rounds = [{tile: samplers[tile]() for tile in timed} for _ in range(ROUNDS)]
        medians = {tile: statistics.median(each[tile] for each in rounds) for tile in timed}
        winner = min(medians, key=medians.__getitem__)
        difference_of(self.case, programs[winner])
        return Tuned(self.tuning, winner, medians[winner], medians.get(self.now), quick)

    def _program(self, tile: Tile, compile_with: Callable[[Build], Kernel]) -> Program:
        return program_of(self.case, self.capability, table_with(self.tuning, tile, self.capability), compile_with)

    def _builds(self, tile: Tile) -> list[Build]:
        asked: list[Build] = []

        def remember(build: Build) -> Kernel:
            asked.append(build)
            return Kernel(b"-", "-", build.warps, 0, 0)

        self._program(tile, remember)
        return asked

    def _programs(self, compiled: Compiled) -> dict[Tile, Program]:
        """Of the candidates that compile."""

        def find(build: Build) -> Kernel:
            kernel = compiled[repr(build)]
            assert isinstance(kernel, Kernel)
            return kernel

        usable = [t for t, builds in self.builds.items() if all(isinstance(compiled[repr(b)], Kernel) for b in builds)]
        if not usable:
            raise BuildError(
                "no candidate compiles",
                where=f"{self.case.operator} {self.case.label}",
                hint="name other candidates in its file of operators/kernels",
            )
        return {tile: self._program(tile, find) for tile in usable}

    def _samplers(self, programs: dict[Tile, Program]) -> dict[Tile, Callable[[], float]]:
        inputs = self._inputs()
        outputs = [new_outputs(next(iter(programs.values())), each) for each in inputs]

        def sampler(program: Program) -> Callable[[], float]:
            return captured([bind(program, i, o) for i, o in zip(inputs, outputs, strict=True)], CALLS).sample_us

        return {tile: sampler(program) for tile, program in programs.items()}

    def _inputs(self) -> list[list[Tensor]]:
        first = self.case.tensors(DEVICE)
        size = sum(tensor.nbytes for tensor in first)
        count = max(2, min(copies_of(size), MAX_BYTES // size))
        return [first, *(self.case.tensors(DEVICE) for _ in range(count - 1))]
