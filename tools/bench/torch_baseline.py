"""A strong PyTorch implementation of the same serving step: the baseline a plan is measured against, and nothing else.

It is what a careful user would write: BF16, keys and values of earlier steps kept, unmasked attention over contexts of equal
length, grouped products for experts, two-level top-k. A test compares it with models/; no stage of the pipeline uses it.

Letters in names: B requests, S context tokens, R beams per request, N = B * R rows, D d_model, H query heads, G key/value
groups, d head width, E experts, K experts per row, V codebook.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...calibration.quantize import TensorSource
from ...export.serving import effective_widths
from ...models.config import LEVELS, NORM_EPSILON, PATHWAYS

KeyValue = tuple[Tensor, Tensor]


class DenseFfn(NamedTuple):
    """SwiGLU; gate over up in one matrix."""

    gate_up: Tensor
    down: Tensor


class ExpertFfn(NamedTuple):
    """Routed experts as [E, D, 2 * hidden] and [E, hidden, D]; the shared ones as one wide SwiGLU, or None."""

    router_ED: Tensor
    selection_bias_E: Tensor
    gate_up: Tensor
    down: Tensor
    shared: DenseFfn | None
    top_k: int


class BlockWeights(NamedTuple):
    """One decoder block; q, k and v of self attention in one matrix."""

    norms: tuple[Tensor, Tensor, Tensor]
    cross_q: Tensor
    cross_o: Tensor
    qkv: Tensor
    self_o: Tensor
    ffn: DenseFfn | ExpertFfn


class TorchBaseline:
    """The model, ready to serve batches whose contexts have equal lengths.

    Args:
        source: Weights in the model's own names.
        dtype: BF16 unless a test wants to compare; the grouped product is fast in BF16 alone.
        device: Where it runs.
    """

    def __init__(self, source: TensorSource, *, dtype: torch.dtype = torch.bfloat16, device: str = "cuda") -> None:
        self.config, self._source, self._dtype, self._device = source.config, source, dtype, device
        self.pathways = [self._tensor(f"context.pathways.{p}.weight") for p in range(len(PATHWAYS))]
        self.key_norms = [self._tensor(f"context.key_norms.{i}.weight") for i in range(self.config.l_kv)]
        values = self.config.l_kv if self.config.s_kv == 2 else 0
        self.value_norms = [self._tensor(f"context.value_norms.{i}.weight") for i in range(values)]
        self.token_embedding = self._tensor("token_embedding.weight")
        self.position_embedding = self._tensor("position_embedding.weight")
        self.blocks = [self._block(layer) for layer in range(self.config.n_layers)]
        self.head_norms = [self._tensor(f"head_norms.{t}.weight") for t in range(LEVELS)]
        self.heads = [self._tensor(f"heads.{t}.weight") for t in range(LEVELS)]
        self._run_block: Callable[..., tuple[Tensor, KeyValue]] = run_block
        self._beam_step: Callable[..., tuple[Tensor, Tensor, Tensor]] = beam_step

    def compiled(self, backend: str = "inductor") -> TorchBaseline:
        """The same weights with kernels by torch.compile: of a block and of the beam step, for each kind of block and step."""
        torch.compiler.reset()  # earlier shapes would count against the limit of recompilations
        compiled = copy.copy(self)
        compiled._run_block = torch.compile(run_block, fullgraph=True, dynamic=False, backend=backend)
        compiled._beam_step = torch.compile(beam_step, fullgraph=True, dynamic=False, backend=backend)
        return compiled

    @torch.no_grad()
    def __call__(self, features_BSF: Tensor, lengths: Sequence[int], beam: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Semantic IDs int64 [B, W, 3] and log-probabilities FP32 [B, W], best first.

        Args:
            features_BSF: Context features without padding.
            lengths: Tokens of each pathway, the same for every request; their sum is S.
            beam: Beams kept after each step.
        """
        contexts = self._contexts(features_BSF.to(self._dtype), lengths)
        batch, config = features_BSF.shape[0], self.config
        first = torch.arange(batch, device=self._device)[:, None]
        tokens_BR = torch.zeros_like(first)
        scores_BR = torch.zeros(batch, 1, device=self._device)
        sids, rows, parent_N = torch.zeros(batch, 1, 0, dtype=torch.int64, device=self._device), 1, first.flatten()
        history: list[list[KeyValue]] = [[] for _ in self.blocks]
        for step, width in enumerate(effective_widths(beam, config.codebook)):
            h_ND = self.token_embedding[tokens_BR.flatten()] + self.position_embedding[step]
            for layer, weights in enumerate(self.blocks):
                context = contexts[config.kv_set(layer)]
                h_ND, now = self._run_block(h_ND, weights, context, tuple(history[layer]), parent_N, rows)
                history[layer].append(now)
            scores_BR, parent_BR, chosen_BR = self._beam_step(h_ND, self.head_norms[step], self.heads[step], scores_BR, width)
            parents = sids.gather(1, parent_BR[..., None].expand(-1, -1, step))
            sids = torch.cat([parents, chosen_BR[..., None]], -1)
            parent_N, rows = (first * rows + parent_BR).flatten(), width
            tokens_BR = 1 + step * config.codebook + chosen_BR
        return sids, scores_BR

    def _contexts(self, features_BSF: Tensor, lengths: Sequence[int]) -> list[KeyValue]:
        """Keys and values [B, G, S, d] of each set."""
        parts = zip(features_BSF.split(list(lengths), 1), self.pathways, strict=True)
        chunks = torch.cat([F.linear(part, weight) for part, weight in parts], 1).unflatten(-1, (-1, self.config.g_kv, self.config.d_head))
        sets = []
        for index, norm in enumerate(self.key_norms):
            first = index * self.config.s_kv
            key = rms_norm(chunks[:, :, first], norm).transpose(1, 2).contiguous()
            if self.config.s_kv == 1:
                sets.append((key, key))
            else:
                sets.append((key, rms_norm(chunks[:, :, first + 1], self.value_norms[index]).transpose(1, 2).contiguous()))
        return sets

    def _tensor(self, *names: str, dtype: torch.dtype | None = None) -> Tensor:
        """One tensor, or several over each other."""
        return torch.cat([self._source.tensor(name).to(self._device, dtype or self._dtype) for name in names])

    def _block(self, layer: int) -> BlockWeights:
        block = f"blocks.{layer}"
        cross, own = f"{block}.cross_attention", f"{block}.self_attention"
        cross_norm, self_norm, ffn_norm = (self._tensor(f"{block}.{name}_norm.weight") for name in ("cross", "self", "ffn"))
        return BlockWeights(
            norms=(cross_norm, self_norm, ffn_norm),
            cross_q=self._tensor(f"{cross}.q.weight"),
            cross_o=self._tensor(f"{cross}.o.weight"),
            qkv=self._tensor(*(f"{own}.{part}.weight" for part in ("q", "k", "v"))),
            self_o=self._tensor(f"{own}.o.weight"),
            ffn=self._experts(f"{block}.ffn") if self.config.is_moe(layer) else self._dense(f"{block}.ffn"),
        )

    def _dense(self, ffn: str) -> DenseFfn:
        return DenseFfn(self._tensor(f"{ffn}.gate.weight", f"{ffn}.up.weight"), self._tensor(f"{ffn}.down.weight"))

    def _experts(self, ffn: str) -> ExpertFfn:
        moe = self.config.moe
        assert moe is not None
        experts = [self._dense(f"{ffn}.experts.{number}") for number in range(moe.experts)]
        return ExpertFfn(
            router_ED=self._tensor(f"{ffn}.router.weight", dtype=torch.float32),
            selection_bias_E=self._tensor(f"{ffn}.selection_bias", dtype=torch.float32),
            gate_up=torch.stack([expert.gate_up.t() for expert in experts]),
            down=torch.stack([expert.down.t() for expert in experts]),
            shared=self._shared([f"{ffn}.shared.{number}" for number in range(moe.shared)]),
            top_k=moe.top_k,
        )

    def _shared(self, names: Sequence[str]) -> DenseFfn | None:
        """The sum of several SwiGLUs is one whose hidden channels are all of theirs."""
        if not names:
            return None
        gate_up = self._tensor(*(f"{name}.{part}.weight" for part in ("gate", "up") for name in names))
        return DenseFfn(gate_up, torch.cat([self._tensor(f"{name}.down.weight") for name in names], 1))


def run_block(
    h_ND: Tensor, weights: BlockWeights, context: KeyValue, history: tuple[KeyValue, ...], parent_N: Tensor, rows: int
) -> tuple[Tensor, KeyValue]:
    """One decoder block at one step; gives the rows' own key and value [N, D] too.

    Args:
        h_ND: Hidden states.
        weights: The block's.
        context: Keys and values [B, G, S, d].
        history: Keys and values of the steps before: [B, D], then one for each beam the step before ran on.
        parent_N: For each row the row of the step before that it continues.
        rows: Rows per request.
    """
    cross_norm, self_norm, ffn_norm = weights.norms
    h_ND = h_ND + F.linear(_cross_attention(F.linear(rms_norm(h_ND, cross_norm), weights.cross_q), context, rows), weights.cross_o)
    query_ND, key_ND, value_ND = F.linear(rms_norm(h_ND, self_norm), weights.qkv).chunk(3, -1)
    attended_ND = _self_attention(query_ND, (key_ND, value_ND), history, parent_N, rows, context[0].shape[-1])
    h_ND = h_ND + F.linear(attended_ND, weights.self_o)
    x_ND = rms_norm(h_ND, ffn_norm)
    ffn = weights.ffn
    return h_ND + (_dense_ffn(x_ND, ffn) if isinstance(ffn, DenseFfn) else _expert_ffn(x_ND, ffn)), (key_ND, value_ND)


def beam_step(h_ND: Tensor, norm: Tensor, head: Tensor, scores_BR: Tensor, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """New scores, parent beams and tokens [B, W]: first the best of each beam, in any order, then the best of those."""
    log_probability_NV = F.log_softmax(F.linear(rms_norm(h_ND, norm), head), -1, dtype=torch.float32)
    per_row = min(width, head.shape[0])
    best_NP, token_NP = log_probability_NV.topk(per_row, sorted=False)
    total_BX = (best_NP.unflatten(0, scores_BR.shape) + scores_BR[..., None]).flatten(1)
    scores_BW, index_BW = total_BX.topk(width)
    return scores_BW, index_BW // per_row, token_NP.view_as(total_BX).gather(1, index_BW)


def rms_norm(x: Tensor, weight: Tensor) -> Tensor:
    return F.rms_norm(x, weight.shape, weight, NORM_EPSILON)


def _cross_attention(query_ND: Tensor, context: KeyValue, rows: int) -> Tensor:
    """Without a mask, which lets torch take its flash attention."""
    key_BGSd, value_BGSd = context
    head = key_BGSd.shape[-1]
    query_BHRd = query_ND.view(-1, rows, query_ND.shape[-1] // head, head).transpose(1, 2)
    grouped = query_BHRd.shape[1] != key_BGSd.shape[1]
    attended_BHRd = F.scaled_dot_product_attention(query_BHRd, key_BGSd, value_BGSd, enable_gqa=grouped)
    return attended_BHRd.transpose(1, 2).reshape(query_ND.shape)


def _self_attention(query_ND: Tensor, own: KeyValue, history: tuple[KeyValue, ...], parent_N: Tensor, rows: int, head: int) -> Tensor:
    """At most three positions: products and sums along a head, no matrices. The first step's are shared by all beams."""
    if not history:
        return own[1]
    per_head = (-1, rows, query_ND.shape[-1] // head, head)
    earlier = [tuple(x[:, None].unflatten(-1, per_head[2:]) for x in history[0])]
    later = [tuple(x[parent_N].view(per_head) for x in step) for step in history[1:]] + [tuple(x.reshape(per_head) for x in own)]
    query_BRHd = query_ND.reshape(per_head)
    scores = torch.stack([(query_BRHd * key).sum(-1, dtype=torch.float32) for key, _ in earlier + later], -1)
    weights = (scores * head**-0.5).softmax(-1).to(query_ND.dtype).unbind(-1)
    attended = torch.zeros_like(query_BRHd)
    for weight_BRH, (_, value) in zip(weights, earlier + later, strict=True):
        attended = torch.addcmul(attended, weight_BRH[..., None], value)
    return attended.reshape(query_ND.shape)


def _dense_ffn(x_ND: Tensor, ffn: DenseFfn) -> Tensor:
    gate, up = F.linear(x_ND, ffn.gate_up).chunk(2, -1)
    return F.linear(F.silu(gate) * up, ffn.down)


def _expert_ffn(x_ND: Tensor, ffn: ExpertFfn) -> Tensor:
    """Rows sorted by expert, two grouped products, and back; no atomics, no wait for the GPU."""
    score_NE = F.linear(x_ND.float(), ffn.router_ED).sigmoid()
    index_NK = (score_NE + ffn.selection_bias_E).topk(ffn.top_k).indices
    selected_NK = score_NE.gather(1, index_NK)
    weight_NK = (selected_NK / selected_NK.sum(1, keepdim=True)).to(x_ND.dtype)
    expert_X = index_NK.flatten()
    order_X = expert_X.argsort()
    ends_E = torch.searchsorted(expert_X[order_X], torch.arange(len(ffn.router_ED), device=x_ND.device), right=True, out_int32=True)
    gate, up = F.grouped_mm(x_ND[order_X // ffn.top_k], ffn.gate_up, offs=ends_E).chunk(2, -1)
    down_XD = F.grouped_mm(F.silu(gate) * up, ffn.down, offs=ends_E)
    back_X = torch.empty_like(order_X).scatter_(0, order_X, torch.arange(len(order_X), device=x_ND.device))
    routed_ND = (down_XD[back_X].view(*index_NK.shape, -1) * weight_NK[..., None]).sum(1)
    return routed_ND if ffn.shared is None else routed_ND + _dense_ffn(x_ND, ffn.shared)
