"""What a built plan really runs, read from the compiled program it carries as text.

TensorRT-RTX writes the program of its compiler into the plan in plain text. The format is not documented: what is
not recognised is reported as unknown, never guessed. The engine inspector needs the plan's GPU, this does not.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = re.compile(rb"header \{\n[^\0]*?\ndescriptors \{\n")
_TENSOR = re.compile(r'^ *(?:sub_)?tensor=\{[^\n]*? name="([^"\n]+)"[^\n]* type=(\w+) ?\}', re.M)
_CONSTANT = re.compile(r"const_payload_size=(\d+) [^\n]* type=(\w+)")
_NAMES = r'((?:"[^"\n]*" ?)*)'
_OPERATION = re.compile(rf'^ +\w+=\{{ ?name="([^"\n]*)" output=\{{{_NAMES}\}} input=\{{{_NAMES}\}}((?:(?!\n +\w+=\{{).)*)', re.M | re.S)
_LAYERS = re.compile(r' layers="([^"]*)"')
_LAYER_SEPARATOR = "\x1f"
_PROFILE_SUFFIX = re.compile(r" \[profile \d+\]$")
_FP8 = "fp8_e4m3"


@dataclass(frozen=True)
class ProgramFacts:
    """`fp8_layers`: ONNX nodes computed by an operation that takes two FP8 operands. `constant_bytes`: weights by type."""

    fp8_layers: frozenset[str]
    constant_bytes: dict[str, int]


def read_program(plan: Path) -> ProgramFacts | None:
    """Facts of the programs in a plan; None when the plan carries none that can be read."""
    texts = _programs(plan)
    if not texts:
        return None
    bytes_by_type: Counter[str] = Counter()
    for text in texts:
        for size, kind in _CONSTANT.findall(text):
            bytes_by_type[kind] += int(size)
    return ProgramFacts(frozenset().union(*map(_fp8_layers, texts)), dict(sorted(bytes_by_type.items())))


def _programs(plan: Path) -> list[str]:
    with plan.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        texts = []
        for start in _PROGRAM.finditer(content):
            end = content.find(b"\0", start.end())
            texts.append(content[start.start() : end if end >= 0 else len(content)].decode("utf-8", errors="replace"))
    return texts


def _fp8_layers(text: str) -> set[str]:
    types = dict(_TENSOR.findall(text))
    layers: set[str] = set()
    for name, _, operands, rest in _OPERATION.findall(text):
        if sum(types.get(operand) == _FP8 for operand in re.findall(r'"([^"]+)"', operands)) < 2:
            continue
        sources = "".join(_LAYERS.findall(rest)).split(_LAYER_SEPARATOR)
        layers.add(_PROFILE_SUFFIX.sub("", name))
        layers.update(source.removeprefix("[ONNX Layer: ").removesuffix("]") for source in sources if source)
    return layers
