"""Inputs for the operator gate that requests seldom give: ties, NaN, padding that holds values, the shortest and the longest contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..operators.context_codes import token_of_place
from ..operators.operator import Call


class Adversarial(NamedTuple):
    """A call with made-up inputs and its reference outputs; `exact`: numbers of the outputs, indices, that must be equal."""

    call: Call
    exact: tuple[int, ...] = ()


def adversarial_calls(calls: Sequence[Call]) -> list[Adversarial]:
    """Made-up inputs in the shapes of recorded calls, for the last call of each operator that has an edge: it has the most rows."""
    last = {call.operator.name: call for call in calls}
    return [each for name, make in _EDGES.items() if name in last for each in make(last[name])]


def _ties(call: Call) -> Iterator[Adversarial]:
    """All candidates equal; and a few equal ones above the rest, spread over the vocabulary. Earlier beams are equal too.

    And rows without probabilities: one of NaN, one of -inf alone; all others are as they were, and lose no place to them.
    """
    logits_NV, scores_BR = call.inputs
    flat = torch.zeros_like(logits_NV)
    raised = flat.clone()
    raised[:, ::3] = 1.0
    for what, logits in (("all scores equal", flat), ("the best scores equal", raised)):
        yield _with_inputs(call, what, (logits, torch.zeros_like(scores_BR)), exact=(1, 2))
    for what, bad in (("a row of NaN", torch.nan), ("a row of -inf", -torch.inf)):
        broken = logits_NV.clone()
        broken[-1] = bad
        yield _with_inputs(call, what, (broken, scores_BR))
    never = logits_NV.clone()
    never[:, : never.shape[1] // 2] = -torch.inf
    yield _with_inputs(call, "half of the candidates at -inf", (never, scores_BR))


def _item_edges(call: Call) -> Iterator[Adversarial]:
    """Ties, a request for one beam, and requests that may have nothing."""
    logits_NV, scores_BR, *rest = call.inputs
    flat, even = torch.zeros_like(logits_NV), torch.zeros_like(scores_BR)
    yield _with_inputs(call, "all scores equal", (flat, even, *rest), exact=(1, 2))
    place = {"BeamStepItems1": 1, "BeamStepItems2": 4, "BeamStepItems3": 6}[call.operator.name]  # of limits, allowed classes behind
    one, nothing = rest[place].clone(), rest[place].clone()
    one[:, 0], nothing[:, 2] = 1, 1
    none_allowed = torch.zeros_like(rest[place + 1])
    yield _with_inputs(call, "one beam asked for", (flat, even, *rest[:place], one, *rest[place + 1 :]), exact=(1, 2))
    yield _with_inputs(call, "no item allowed", (flat, even, *rest[:place], nothing, none_allowed, *rest[place + 2 :]), exact=(1, 2))


def _pathways(call: Call) -> Iterator[Adversarial]:
    """Contexts of one pathway alone, an equal share of each, and none; all that is placed, and all that is left out, are real values."""
    features_BSF, lengths_BP = call.inputs
    tokens, pathways = features_BSF.shape[1], lengths_BP.shape[1]
    filled_BSF = torch.where(features_BSF.isfinite(), features_BSF, 1.0)
    none = torch.zeros_like(lengths_BP)
    yield _with_inputs(call, "empty contexts", (filled_BSF, none))
    yield _with_inputs(call, "a share of each pathway", (filled_BSF, none + tokens // pathways))
    for pathway in range(pathways):
        alone = none.clone()
        alone[:, pathway] = tokens
        yield _with_inputs(call, f"pathway {pathway} alone", (filled_BSF, alone))


def _norm_lengths(call: Call) -> Iterator[Adversarial]:
    """Contexts cut short, so that what lies behind them are real values. Norms that are quantized have a scale behind the lengths."""
    chunk_BSX, weight, lengths_B, *scale = call.inputs
    for what, cut_B in _cut(lengths_B, chunk_BSX.shape[1]):
        yield _with_inputs(call, what, (chunk_BSX, weight, cut_B, *scale))


def _attention_lengths(call: Call) -> Iterator[Adversarial]:
    """Contexts cut short; keys and values behind them are zero, as ContextNorm leaves them, and have no share in the softmax."""
    query_ND, key_BGSd, value_BGSd, lengths_B = call.inputs
    tokens = key_BGSd.shape[2]
    for what, cut_B in _cut(lengths_B, tokens):
        inside_B1S1 = (torch.arange(tokens) < cut_B[:, None])[:, None, :, None]
        key, value = (torch.where(inside_B1S1, x, 0) for x in (key_BGSd, value_BGSd))
        yield _with_inputs(call, what, (query_ND, key, value, cut_B))


def _fp8_attention_lengths(call: Call) -> Iterator[Adversarial]:
    """Likewise, of codes in blocks of tokens: values behind a context are zero, keys are as they were."""
    query_ND, key_codes, key_scale, value_codes, value_scale, lengths_B = call.inputs
    blocks, token_n = key_codes.shape[2], token_of_place()
    for what, cut_B in _cut(lengths_B, blocks * len(token_n)):
        inside_BTn = torch.arange(blocks)[:, None] * len(token_n) + token_n < cut_B[:, None, None]
        value = torch.where(inside_BTn[:, None, :, None], value_codes.float(), 0).to(value_codes.dtype)
        yield _with_inputs(call, what, (query_ND, key_codes, key_scale, value, value_scale, cut_B))


def _routes(call: Call) -> Iterator[Adversarial]:
    """Experts with equal scores: all of them, and all that are best but the first. A token of zeros, which knows no expert."""
    x_ND, router_ED, bias_E = call.inputs
    equal = router_ED[:1].expand_as(router_ED).contiguous()
    first_worse = torch.zeros_like(bias_E)
    first_worse[0] = -1.0
    yield _with_inputs(call, "all experts equal", (x_ND, equal, torch.zeros_like(bias_E)), exact=(0,))
    yield _with_inputs(call, "all experts but the first equal", (x_ND, equal, first_worse), exact=(0,))
    yield _with_inputs(call, "tokens of zeros", (torch.zeros_like(x_ND), router_ED, torch.zeros_like(bias_E)), exact=(0,))


def _positions(call: Call) -> Iterator[Adversarial]:
    """One position takes all attention, or none; all have an equal share; the first and the last row of a request are ancestors."""
    qkv_N3D, bos_B3D, *rest = call.inputs
    width = qkv_N3D.shape[1] // 3
    yield _with_inputs(call, "equal scores", (_scaled(qkv_N3D, 0.0, width), bos_B3D, *rest))
    for what, sharpness in (("its own position far ahead", 1.0), ("its own position far behind", -1.0)):
        own = qkv_N3D.clone()
        own[:, :width] = _FAR
        own[:, width : 2 * width] = sharpness * _FAR
        yield _with_inputs(call, what, (own, bos_B3D, *rest))
    if rest:
        first_M3D, parent_BR = rest
        last = first_M3D.shape[0] // parent_BR.shape[0] - 1
        for what, row in (("the first row as every ancestor", 0), ("the last row as every ancestor", last)):
            yield _with_inputs(call, what, (qkv_N3D, bos_B3D, first_M3D, torch.full_like(parent_BR, row)))


def _scaled(qkv_N3D: Tensor, factor: float, width: int) -> Tensor:
    """Projections whose queries are multiplied."""
    scaled = qkv_N3D.clone()
    scaled[:, :width] *= factor
    return scaled


def _cut(lengths_B: Tensor, tokens: int) -> Iterator[tuple[str, Tensor]]:
    yield "empty contexts", torch.zeros_like(lengths_B)
    yield "one token", torch.ones_like(lengths_B)
    yield "the last token cut off", (lengths_B - 1).clamp(min=0)
    yield "full contexts", torch.full_like(lengths_B, tokens)


def _with_inputs(call: Call, what: str, inputs: tuple[Tensor, ...], *, exact: tuple[int, ...] = ()) -> Adversarial:
    outputs = call.operator.reference(*inputs, **call.attributes)
    return Adversarial(call._replace(label=f"{call.label} with {what}", inputs=inputs, outputs=outputs), exact)


_FAR = 8.0  # of queries and keys: scores hundreds apart, one weight of the softmax is 1 and the others 0
_EDGES: dict[str, Callable[[Call], Iterator[Adversarial]]] = {
    "BeamStep": _ties,
    **{f"BeamStepItems{level}": _item_edges for level in (1, 2, 3)},
    "ContextFeatures": _pathways,
    "ContextNorm": _norm_lengths,
    "ContextKeyCodes": _norm_lengths,
    "ContextValueCodes": _norm_lengths,
    "ContextAttention": _attention_lengths,
    "ContextAttentionFp8": _fp8_attention_lengths,
    "MoeRoute": _routes,
    "BeamSelfAttention1": _positions,
    "BeamSelfAttention2": _positions,
}
