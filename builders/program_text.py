"""What a built plan really runs, read from the compiled program it carries as text.

TensorRT-RTX writes the program of its compiler into the plan in plain text. The format is not documented: what is
not recognized is reported as unknown, never guessed. The engine inspector needs the plan's GPU, this does not.
"""

from __future__ import annotations

import mmap
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

_PROGRAM = re.compile(rb"header \{\n[^\0]*?\ndescriptors \{\n")
_TENSOR = re.compile(r'^ *(?:sub_)?tensor=\{[^\n]*? name="([^"\n]+)"[^\n]* type=(\w+) ?\}', re.M)
_CONSTANT = re.compile(r"const_payload_size=(\d+) [^\n]* offset=(\d+) [^\n]* region=(\S+) [^\n]* type=(\w+)")
_NAMES = r'((?:"[^"\n]*" ?)*)'
_OPERATION = re.compile(rf'^ +\w+=\{{ ?name="([^"\n]*)" output=\{{{_NAMES}\}} input=\{{{_NAMES}\}}((?:(?!\n +\w+=\{{).)*)', re.M | re.S)
_LAYERS = re.compile(r' layers="([^"]*)"')
_LAYER_SEPARATOR = "\x1f"
_PROFILE = re.compile(r" \[profile \d+\]")
_FP8 = "fp8_e4m3"


@dataclass(frozen=True)
class ProgramFacts:
    """What the programs of a plan run and hold.

    `fp8_layers`: ONNX nodes computed, in every profile, by an operation that takes two FP8 operands.
    `constant_bytes`: weights by type, of the program that holds most; those of further profiles share them.
    """

    fp8_layers: frozenset[str]
    constant_bytes: dict[str, int]


def read_program(plan: Path) -> ProgramFacts | None:
    """Facts of the programs in a plan; None when the plan carries none that can be read."""
    texts = _programs(plan)
    if not texts:
        return None
    in_profile: defaultdict[str, set[str]] = defaultdict(set)
    for text in texts:
        in_profile[_profile(text)] |= _fp8_layers(text)
    fp8_layers = frozenset.intersection(*map(frozenset, in_profile.values()))
    return ProgramFacts(fp8_layers, max(map(_constant_bytes, texts), key=lambda constants: sum(constants.values())))


def _profile(text: str) -> str:
    """What marks the operations of a profile; nothing marks those of the first."""
    mark = _PROFILE.search(text)
    return mark.group() if mark else ""


def _constant_bytes(text: str) -> dict[str, int]:
    """The uses of one weight in several steps share its place, and count once."""
    stored = {(region, offset): (kind, int(size)) for size, offset, region, kind in _CONSTANT.findall(text)}
    constants: Counter[str] = Counter()
    for kind, size in stored.values():
        constants[kind] += size
    return dict(sorted(constants.items()))


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
        layers.add(_PROFILE.sub("", name))
        layers.update(source.removeprefix("[ONNX Layer: ").removesuffix("]") for source in sources if source)
    return layers
