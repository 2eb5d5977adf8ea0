"""`onerec-trt dev bench-items`: the beam step that follows a catalogue beside the open one, and the swap of the catalogue under load.

Every step is first compared with its PyTorch reference on a catalogue of full size. Whole plans come behind, where they are asked for.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core.arrays import Array
from ...core.artifacts import write_json
from ...core.graph_io import GraphTensor
from ...models.catalogue_index import index_in_memory
from ...operators.beam_step_items import LEVEL_OF
from ...operators.kernels.beam_step_cases import CODEBOOK, beam_step_case
from ...operators.kernels.beam_step_items_cases import World, items_case, random_catalogue
from ...operators.kernels.registry import program_of
from ...operators.launch.case import Case
from ...operators.launch.launch import bind, new_outputs
from ...operators.launch.program import Program
from ...runtime.item_index import RESIDENT, ItemIndex
from ...runtime.item_rules import ItemRules
from ...runtime.resident_inputs import ResidentInputs
from ..environment import software
from .item_host import EXCLUDED, all_rules
from .item_plans import PlanBench, measure_plans
from .parity import difference_of, this_capability
from .timing import Captured, Run, captured, interleaved_us

ITEMS = 10_000_000
REQUESTS, WIDTH = 32, 512
CLASSES, CATEGORIES = 1024, 16
SETS = 3  # of logits in rotation: 256 MiB each at 512 rows of a request
SWAPS, BATCHES = 20, 400
DEVICE = "cuda"
Say = Callable[[str], None]


def bench_items(
    out: Path, items: int = ITEMS, samples: int = 21, say: Say = print, commit: str = "", plans: PlanBench | None = None
) -> dict[str, Any]:
    """Check, measure, and write the result: the steps first, so that a plan that fails leaves them; gives it, too.

    Raises:
        GpuError: There is no GPU, or it fails.
        GateError: A kernel differs from PyTorch.
        CalibrationError, BuildError: A plan cannot be made.
        ArtifactError: The result cannot be written.
    """
    capability = this_capability()
    torch.manual_seed(0)
    begun = time.monotonic()
    index = index_in_memory(random_catalogue(CODEBOOK, items, seed=1, categories=CATEGORIES), CODEBOOK, CLASSES)
    say(f"{index.items} items, {index.sids} semantic IDs, {index.pairs} pairs, {index.classes} classes: {time.monotonic() - begun:.0f} s")
    environment = {
        "gpu": torch.cuda.get_device_properties(0).name,
        "compute_capability": capability,
        **software(("onerec-trt", "torch", "triton", "numpy"), commit),
        "items": index.items,
        "semantic_ids": index.sids,
        "pairs": index.pairs,
        "category_classes": index.classes,
        "resident_bytes": sum(index.arrays[name].nbytes for name in RESIDENT.values()),
        "requests": REQUESTS,
        "samples": samples,
    }
    steps = list(_steps(index, capability, samples, say))
    report = {"environment": environment, "steps": steps, "swap": _swap(index, capability, say)}
    write_json(out, report)
    if plans is not None:
        other = index_in_memory(random_catalogue(CODEBOOK, max(1, items // 10), seed=2, categories=CATEGORIES), CODEBOOK, CLASSES)
        report["plans"] = measure_plans(plans, (index, other), partial(all_rules, index), say)
        write_json(out, report)
    return report


def _worlds(index: ItemIndex) -> dict[str, World]:
    """The catalogue without rules, and with them."""
    ruled = tuple(all_rules(index, request) for request in range(REQUESTS))
    return {
        "no rules": World(index, (ItemRules(),) * REQUESTS, CLASSES, EXCLUDED),
        "rules": World(index, ruled, CLASSES, EXCLUDED),
    }


def _steps(index: ItemIndex, capability: str, samples: int, say: Say) -> Iterator[dict[str, Any]]:
    """Each of the three steps: the difference from PyTorch, and microseconds beside the open step of the same size."""
    worlds = _worlds(index)
    for level, rows in ((1, 1), (2, WIDTH), (3, WIDTH)):
        opened = beam_step_case(REQUESTS, rows, CODEBOOK, WIDTH)
        cases = {name: items_case(level, world, rows, WIDTH) for name, world in worlds.items()}
        programs = {name: program_of(case, capability) for name, case in cases.items()}
        differences = {name: difference_of(cases[name], programs[name]) for name in cases}
        logits = [opened.tensors(DEVICE) for _ in range(SETS)]
        candidates = {"open": _captured(program_of(opened, capability), logits)}
        for name, case in cases.items():
            rest = case.tensors(DEVICE)[2:]
            candidates[name] = _captured(programs[name], [[*each, *rest] for each in logits])
        taken = interleaved_us(candidates, samples)
        medians = {name: statistics.median(each) for name, each in taken.items()}
        result = {
            "level": level,
            "rows": rows,
            "width": WIDTH,
            "samples_us": {name: [round(sample, 3) for sample in each] for name, each in taken.items()},
            "microseconds": {name: round(each, 3) for name, each in medians.items()},
            "ratio": {name: round(medians[name] / medians["open"], 4) for name in cases},
            "differences": differences,
            "valid": {name: _valid(programs[name], case, index) for name, case in cases.items()},
        }
        say(f"level {level}: {result['microseconds']} us, ratio {result['ratio']}, differences {differences}, valid {result['valid']}")
        yield result
        torch.cuda.empty_cache()


def _captured(program: Program, inputs: list[list[Tensor]]) -> Captured:
    return captured([bind(program, each, new_outputs(program, each)) for each in inputs], calls=12)


def _valid(program: Program, case: Case, index: ItemIndex) -> dict[str, int]:
    """Beams of one run, and how many of them begin an item of the catalogue."""
    inputs = case.tensors(DEVICE)
    outputs = new_outputs(program, inputs)
    bind(program, inputs, outputs)()
    parent, token = (each.cpu() for each in outputs[1:])
    level = LEVEL_OF[case.operator]
    prefix = [each.cpu().gather(1, parent) for each in inputs[2 : 1 + level]]
    codes = torch.stack([*prefix, token], -1)[token >= 0].numpy()
    return {"beams": len(codes), "in the catalogue": int(index.begins_item(codes).sum())}


def _swap(index: ItemIndex, capability: str, say: Say) -> dict[str, Any]:
    """Third steps back to back while another thread stages and swaps the catalogue: what both take."""
    case = items_case(3, _worlds(index)["no rules"], WIDTH, WIDTH)
    program, inputs = program_of(case, capability), case.tensors(DEVICE)
    names = ("pair_bits", "pair_ranks", "pair_rows", "entries")
    given = dict(zip(names, inputs[4:8], strict=True))
    residents = ResidentInputs(
        GraphTensor(name=name, role=None, dtype="int32", axes=tuple(each.shape), kind="resident") for name, each in given.items()
    )
    for name, each in given.items():
        residents.buffers[name].copy_(each)
    bound = [*inputs[:4], *(residents.buffers[name] for name in names), *inputs[8:]]
    server = _Server(residents, bind(program, bound, new_outputs(program, bound)))
    quiet = server.gaps_ms(BATCHES)
    with ThreadPoolExecutor(1) as pool:
        swapping = pool.submit(server.swap_often, {name: index.arrays[name] for name in names})
        busy = server.gaps_ms(BATCHES, swapping)
        swapping.result()
    result = {
        "bytes": sum(each.nbytes for each in given.values()),
        "swaps": SWAPS,
        "stage_ms": round(statistics.median(server.stage_ms), 3),
        "swap_ms": round(statistics.median(server.swap_ms), 3),
        "longest_swap_ms": round(max(server.swap_ms), 3),
        "batches_beside": len(busy),
        "batch_ms": round(statistics.median(quiet), 3),
        "longest_batch_ms": round(max(quiet), 3),
        "batch_ms_beside_swaps": round(statistics.median(busy), 3),
        "longest_batch_ms_beside_swaps": round(max(busy), 3),
    }
    say(f"swap: {result}")
    return result


class _Server:
    """Batches on one stream, two of them enqueued ahead, and a thread that swaps the resident inputs between them."""

    def __init__(self, residents: ResidentInputs, run: Run) -> None:
        self._residents, self._run = residents, run
        self._stream, self._lock = torch.cuda.Stream(), threading.Lock()
        self.stage_ms: list[float] = []
        self.swap_ms: list[float] = []

    def gaps_ms(self, batches: int, beside: Future[None] | None = None) -> list[float]:
        """Time from the end of each batch to that of the next, for so many batches and until the other work has ended."""
        ends: list[torch.cuda.Event] = []
        while len(ends) < batches or (beside is not None and not beside.done()):
            with self._lock, torch.cuda.stream(self._stream):
                self._run()
                ends.append(torch.cuda.Event(enable_timing=True))
                ends[-1].record()
            if len(ends) > 2:
                ends[-3].synchronize()
        self._stream.synchronize()
        return [a.elapsed_time(b) for a, b in pairwise(ends)]

    def swap_often(self, arrays: dict[str, Array]) -> None:
        """Stage the content on the GPU, then swap it while nothing is enqueued."""
        for _ in range(SWAPS):
            begun = time.monotonic()
            staged = self._residents.stage(arrays)
            self.stage_ms.append((time.monotonic() - begun) * 1e3)
            first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with self._lock:
                first.record(self._stream)
                self._residents.swap(staged, [self._stream])
                last.record(self._stream)
            last.synchronize()
            self.swap_ms.append(first.elapsed_time(last))
