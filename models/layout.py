"""The layout of a model: every linear with its names in the checkpoint, the packed weights and the graph, and every other tensor.

Calibration, export, lint, benchmark and report read this table instead of spelling names. Another model family fills in
the same description.

Which linears can be quantized: arXiv 2603.11486, table of the FP8 operators: attention projections, dense FFN and experts;
never the router, the context pathways or the heads.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property, lru_cache
from typing import Literal

from .config import LEVELS, PATHWAYS, MoeConfig, OneRecConfig

Kind = Literal[
    "context",
    "cross q",
    "cross o",
    "self qkv",
    "self o",
    "ffn gate_up",
    "ffn down",
    "router",
    "expert gate_up",
    "expert down",
    "head",
]
Other = Literal["norm", "embedding", "selection bias"]
Scheme = Literal["linear", "expert"]
Role = Literal["beam", "activation", "norm", "self-attention", "context attention", "product", "router", "experts"]

# What is computed at a place in the graph; places in a block stand without `blocks.N`, all without `stepN`.
PLACES: Mapping[str, Role] = {
    "node_embedding": "beam",
    "beam": "beam",
    "score": "beam",
    "head": "beam",
    "head_norm": "beam",
    "ffn.activation": "activation",
    "cross.norm": "norm",
    "self.norm": "norm",
    "ffn.norm": "norm",
    "self.attention": "self-attention",
    "self.quantize": "self-attention",
    "cross.attention": "context attention",
    "cross.quantize": "context attention",
    "context": "context attention",
    "cross.q": "product",
    "cross.o": "product",
    "self.qkv": "product",
    "self.o": "product",
    "ffn.gate_up": "product",
    "ffn.down": "product",
    "ffn.route": "router",
    "ffn.experts": "experts",
}
EVERY_STEP = tuple(range(LEVELS))
CONTEXT_ATTENTION = "cross.attention"  # within a block
_EMBEDDINGS: tuple[str, ...] = ("token_embedding.weight", "position_embedding.weight")
_BLOCK = re.compile(r"^blocks\.(\d+)(?:\.(.*))?$")
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r"\.(experts|shared)\.\d+\.")


@dataclass(frozen=True)
class Linear:
    """One linear of the checkpoint.

    Attributes:
        name: Module in the checkpoint, e.g. `blocks.0.self_attention.q`; its tensor is `name.weight`.
        kind: What it is for; linears of one kind and block are packed in the table's order.
        shape: Outputs N and inputs K.
        input: Name of the tensor it reads; linears that read the same one share an activation scale.
        packed: Packed weight, e.g. `blocks.0.self_qkv.weight`.
        place: Place in the graph of the operator that multiplies by it, without the step, e.g. `blocks.0.self.qkv`.
        prepared: Place of the operator that writes what it reads, quantized if the precision says so; empty for features.
        scheme: The part of a precision that says how it is quantized; None: never.
        block: Number of its block; None outside of them.
        steps: Decode steps it runs in; none for what runs once per request.
        routed: Whether it belongs to an expert that only routed rows pass through.
    """

    name: str
    kind: Kind
    shape: tuple[int, int]
    input: str
    packed: str
    place: str
    prepared: str
    scheme: Scheme | None = None
    block: int | None = None
    steps: tuple[int, ...] = EVERY_STEP
    routed: bool = False

    @property
    def weight(self) -> str:
        """Its tensor in the checkpoint."""
        return f"{self.name}.weight"

    @property
    def nodes(self) -> tuple[str, ...]:
        """Nodes of the graph that multiply by it, one for each step."""
        return tuple(f"step{step}.{self.place}" for step in self.steps)

    @property
    def parameters(self) -> int:
        return self.shape[0] * self.shape[1]


@dataclass(frozen=True)
class Layout:
    """All tensors of a model.

    Attributes:
        linears: In the model's order.
        others: Tensors of the checkpoint that belong to no linear, and what they are.
        fp32: Tensors kept in FP32, whatever the precision.
        blocks: Number of blocks.
    """

    linears: tuple[Linear, ...]
    others: Mapping[str, Other]
    fp32: frozenset[str]
    blocks: int

    def names(self, kind: Kind, block: int | None = None) -> list[str]:
        """Linears of a kind in a block, or outside of the blocks, in the order they are packed."""
        return self._by_kind.get((kind, block), [])

    @cached_property
    def _by_kind(self) -> dict[tuple[Kind, int | None], list[str]]:
        found: dict[tuple[Kind, int | None], list[str]] = {}
        for linear in self.linears:
            found.setdefault((linear.kind, linear.block), []).append(linear.name)
        return found

    @property
    def tensors(self) -> tuple[str, ...]:
        """Every tensor of the checkpoint."""
        return (*(linear.weight for linear in self.linears), *self.others)

    def shards(self, names: Iterable[str]) -> list[list[str]]:
        """Tensors by file of a quantized checkpoint: everything outside the blocks, then one shard per block."""
        shards: list[list[str]] = [[] for _ in range(self.blocks + 1)]
        for name in names:
            block = block_of(name)
            shards[0 if block is None else block + 1].append(name)
        return shards

    def quantizable(self, pattern: str = "*") -> list[Linear]:
        """Linears that some precision quantizes, at places that match a shell pattern.

        A place is matched as a whole, `blocks.3.cross.o`, or without its block, `cross.o`. Linears of one place are one product, or one
        operator of experts, and are quantized together or not at all.
        """
        return [each for each in self.linears if each.scheme is not None and _matches(each.place, pattern)]

    def attentions(self, pattern: str = "*") -> list[int]:
        """Blocks whose attention to the context stands at a place that matches a shell pattern, as of `quantizable`."""
        return [block for block in range(self.blocks) if _matches(attention_place(block), pattern)]

    def patterns(self, scheme: Scheme) -> list[str]:
        """Names of the linears of a part of a precision, with `*` in place of every number."""
        names = (_NUMBER.sub("*", linear.name) for linear in self.linears if linear.scheme == scheme)
        return list(dict.fromkeys(names))


@lru_cache
def layout(config: OneRecConfig) -> Layout:
    """The layout of OneRec-V2 in one size."""
    blocks = range(config.n_layers)
    linears = (*_context(config), *(linear for block in blocks for linear in _block(config, block)), *_heads(config))
    routers = (linear.weight for linear in linears if linear.kind == "router")
    biases = [f"blocks.{block}.ffn.selection_bias" for block in blocks if config.is_moe(block)]
    others: dict[str, Other] = {**_norms(config), **dict.fromkeys(_EMBEDDINGS, "embedding"), **dict.fromkeys(biases, "selection bias")}
    return Layout(linears, others, frozenset([*routers, *biases]), config.n_layers)


def block_of(name: str) -> int | None:
    """Number of the block that a tensor, module or place lies in; None outside of the blocks."""
    match = _BLOCK.match(name)
    return int(match[1]) if match else None


def attention_place(block: int) -> str:
    """Place in the graph of a block's attention to the context."""
    return f"blocks.{block}.{CONTEXT_ATTENTION}"


def within_block(name: str) -> str:
    """A name without its block: `blocks.3.cross.norm` gives `cross.norm`."""
    match = _BLOCK.match(name)
    return match[2] or "" if match else name


def of_all_experts(name: str) -> str:
    """One name for all experts of a block: `blocks.1.ffn.experts.5.gate` gives `blocks.1.ffn.experts.*.gate`."""
    return _EXPERT.sub(r".\1.*.", name)


def label_of(name: str) -> str:
    """A name as people read it: `blocks.1.ffn.experts.*.gate.weight` gives `1 · ffn experts gate`."""
    short = name.removesuffix(".weight")
    block = block_of(short)
    rest = within_block(short).replace(".*.", ".").replace("_attention", "").replace(".", " ")
    return rest if block is None else f"{block} · {rest}"


def _matches(place: str, pattern: str) -> bool:
    return fnmatchcase(place, pattern) or fnmatchcase(within_block(place), pattern)


def _context(config: OneRecConfig) -> Iterator[Linear]:
    for pathway in range(len(PATHWAYS)):
        name, shape = f"context.pathways.{pathway}", (config.d_context, config.feature_width)
        yield Linear(name, "context", shape, "features", "context.weight", "context.linear", "", steps=())


def _heads(config: OneRecConfig) -> Iterator[Linear]:
    for step in EVERY_STEP:
        name, shape = f"heads.{step}", (config.codebook, config.d_model)
        yield Linear(name, "head", shape, name, f"{name}.weight", "head", "head_norm", steps=(step,))


def _block(config: OneRecConfig, number: int) -> Iterator[Linear]:
    block, square = f"blocks.{number}", (config.d_model, config.d_model)

    def attention(kind: Kind, part: str, side: str, row: str, prepared: str) -> Linear:
        module = f"{block}.{side}_attention"
        packed, place = f"{block}.{side}_{row}.weight", f"{block}.{side}.{row}"
        return Linear(f"{module}.{part}", kind, square, f"{module}.{row}", packed, place, f"{block}.{side}.{prepared}", "linear", number)

    yield attention("cross q", "q", "cross", "q", "norm")
    yield attention("cross o", "o", "cross", "o", "quantize")
    for part in ("q", "k", "v"):
        yield attention("self qkv", part, "self", "qkv", "norm")
    yield attention("self o", "o", "self", "o", "quantize")
    if config.is_moe(number):
        assert config.moe is not None
        yield from _experts(config.d_model, config.moe, number)
    else:
        yield from _dense_ffn(config, number)


def _dense_ffn(config: OneRecConfig, number: int) -> Iterator[Linear]:
    ffn, wide = f"blocks.{number}.ffn", (config.ffn_hidden, config.d_model)
    gate_up, down = f"{ffn}.gate_up", f"{ffn}.down"
    for part in ("gate", "up"):
        yield Linear(f"{ffn}.{part}", "ffn gate_up", wide, gate_up, f"{gate_up}.weight", gate_up, f"{ffn}.norm", "linear", number)
    yield Linear(down, "ffn down", wide[::-1], down, f"{down}.weight", down, f"{ffn}.activation", "linear", number)


def _experts(d_model: int, moe: MoeConfig, number: int) -> Iterator[Linear]:
    """Router, routed experts, shared experts; all experts are one node of the graph."""
    ffn, wide = f"blocks.{number}.ffn", (moe.hidden, d_model)
    router, node, gate_up = f"{ffn}.router", f"{ffn}.experts", f"{ffn}.gate_up"
    yield Linear(router, "router", (moe.experts, d_model), router, router, f"{ffn}.route", f"{ffn}.norm", None, number)
    for role, count in (("experts", moe.experts), ("shared", moe.shared)):
        for index in range(count):
            expert, routed = f"{ffn}.{role}.{index}", role == "experts"
            for part in ("gate", "up"):
                name = f"{expert}.{part}"
                yield Linear(name, "expert gate_up", wide, gate_up, gate_up, node, f"{ffn}.norm", "expert", number, routed=routed)
            down = f"{expert}.down"
            yield Linear(down, "expert down", wide[::-1], down, f"{ffn}.down", node, node, "expert", number, routed=routed)


def _norms(config: OneRecConfig) -> dict[str, Other]:
    values = range(config.l_kv if config.s_kv == 2 else 0)  # otherwise the value is the key
    names = [f"context.key_norms.{index}" for index in range(config.l_kv)] + [f"context.value_norms.{index}" for index in values]
    names += [f"blocks.{block}.{norm}_norm" for block in range(config.n_layers) for norm in ("cross", "self", "ffn")]
    names += [f"head_norms.{step}" for step in EVERY_STEP]
    return {f"{name}.weight": "norm" for name in names}
