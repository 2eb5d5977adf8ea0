"""OneRec-V2, whole: context processor, lazy decoder, mixture of experts, heads. Sources: arXiv 2508.20900, sections 3 to 5.

Every matrix is an nn.Linear, because ModelOpt quantizes modules of that class. Nothing here knows
about FP8, caches or export; the packed serving form is in export/serving.py.

Letters in names: B requests, S context tokens, F feature width, R candidate rows per request,
T decoder positions, D d_model, H query heads, G key/value groups, V codebook size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .config import LEVELS, NORM_EPSILON, PATHWAYS, MoeConfig, OneRecConfig
from .ordering import stable_topk


def linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class KeyValue(NamedTuple):
    """One key/value set of a context; zero where a token is padding."""

    key_BGSd: Tensor
    value_BGSd: Tensor


class Context(NamedTuple):
    """What the decoder sees of a user: one KeyValue per set, and which tokens are real."""

    sets: list[KeyValue]
    valid_BS: Tensor


class ContextProcessor(nn.Module):
    """One linear per pathway, then RMSNorm of each key and value chunk per head. No encoder."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        self.pathways = nn.ModuleList(linear(config.feature_width, config.d_context) for _ in PATHWAYS)
        self.key_norms = nn.ModuleList(nn.RMSNorm(config.d_head, NORM_EPSILON) for _ in range(config.l_kv))
        value_norms = config.l_kv if config.s_kv == 2 else 0  # with S_kv = 1 the value is the key
        self.value_norms = nn.ModuleList(nn.RMSNorm(config.d_head, NORM_EPSILON) for _ in range(value_norms))

    def forward(self, features_BSF: Tensor, lengths_B3: Tensor) -> Context:
        ends_B3 = lengths_B3.cumsum(1)
        position_S = torch.arange(features_BSF.shape[1], device=features_BSF.device)
        valid_BS = position_S < ends_B3[:, -1:]
        pathway_BS = (position_S[None, :, None] >= ends_B3[:, None, :]).sum(-1)
        projected = features_BSF.new_zeros(*features_BSF.shape[:2], self.config.d_context)
        for pathway, project in enumerate(self.pathways):
            chosen_BS1 = (pathway_BS == pathway)[..., None]
            projected = torch.where(chosen_BS1, project(torch.where(chosen_BS1, features_BSF, 0)), projected)
        chunks = projected.unflatten(-1, (-1, self.config.g_kv, self.config.d_head)).unbind(2)
        return Context([self._key_value(chunks, index, valid_BS) for index in range(self.config.l_kv)], valid_BS)

    def _key_value(self, chunks: tuple[Tensor, ...], index: int, valid_BS: Tensor) -> KeyValue:
        padding_BS11 = ~valid_BS[:, :, None, None]
        first = index * self.config.s_kv
        key = self.key_norms[index](chunks[first]).masked_fill(padding_BS11, 0).transpose(1, 2)
        if self.config.s_kv == 1:
            return KeyValue(key, key)
        return KeyValue(key, self.value_norms[index](chunks[first + 1]).masked_fill(padding_BS11, 0).transpose(1, 2))


class CrossAttention(nn.Module):
    """Queries attend to the context; keys and values come ready from it, so only q and o are projections."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.q, self.o = linear(config.d_model, config.d_model), linear(config.d_model, config.d_model)

    def forward(self, x_BRTD: Tensor, kv: KeyValue, valid_BS: Tensor) -> Tensor:
        query = self.q(x_BRTD).flatten(1, 2).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        output: Tensor = self.o(self.attend(query, kv, valid_BS).transpose(1, 2).reshape(x_BRTD.shape))
        return output

    def attend(self, query_BHXd: Tensor, kv: KeyValue, valid_BS: Tensor) -> Tensor:
        """Attention [B, H, X, d] of every row, of all candidates and positions, to the real tokens; 0 where there are none, not NaN."""
        attended = F.scaled_dot_product_attention(query_BHXd, kv.key_BGSd, kv.value_BGSd, valid_BS[:, None, None, :], enable_gqa=True)
        return torch.where(valid_BS.any(1)[:, None, None, None], attended, 0)


class SelfAttention(nn.Module):
    """Causal attention over BOS, s1, s2."""

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.n_heads = config.n_heads
        self.q, self.k, self.v, self.o = (linear(config.d_model, config.d_model) for _ in range(4))

    def forward(self, x_BRTD: Tensor) -> Tensor:
        q, k, v = (p(x_BRTD).unflatten(-1, (self.n_heads, -1)).transpose(2, 3) for p in (self.q, self.k, self.v))
        output: Tensor = self.o(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(2, 3).flatten(3))
        return output


class SwiGlu(nn.Module):
    """down(SiLU(gate x) * up x)."""

    def __init__(self, d_model: int, hidden: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = linear(d_model, hidden), linear(d_model, hidden), linear(hidden, d_model)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.down(F.silu(self.gate(x)) * self.up(x))
        return output


class MixtureOfExperts(nn.Module):
    """Sigmoid scores; a per-expert bias takes part in the selection only; selected weights sum to 1.

    `calibrating`: every expert also sees every token, so that its quantizers get statistics; the
    output stays gated. `last_selected`: tokens each expert was selected for in the last call.
    """

    selection_bias: Tensor

    def __init__(self, d_model: int, moe: MoeConfig) -> None:
        super().__init__()
        self.moe = moe
        self.router = linear(d_model, moe.experts)
        self.register_buffer("selection_bias", torch.zeros(moe.experts))
        self.experts = nn.ModuleList(SwiGlu(d_model, moe.hidden) for _ in range(moe.experts))
        self.shared = nn.ModuleList(SwiGlu(d_model, moe.hidden) for _ in range(moe.shared))
        self.calibrating = False
        self.last_selected: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        rows_ND = x.reshape(-1, x.shape[-1])
        index_NK, weight_NK = self.route(rows_ND)
        routed_ND = torch.zeros_like(rows_ND)
        for expert, places_n in zip(self.experts, places_by_expert(index_NK, self.moe.experts), strict=True):
            chosen_n, weight_n1 = places_n // self.moe.top_k, weight_NK.flatten()[places_n, None].to(x.dtype)
            if self.calibrating:
                routed_ND = routed_ND.index_add(0, chosen_n, expert(rows_ND)[chosen_n] * weight_n1)
            elif len(chosen_n):
                routed_ND = routed_ND.index_add(0, chosen_n, expert(rows_ND[chosen_n]) * weight_n1)
        for expert in self.shared:
            routed_ND = routed_ND + expert(rows_ND)
        return routed_ND.reshape(x.shape)

    def route(self, rows_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Selected experts [N, top_k], best first, ties to the lower index, and their weights in FP32."""
        score_NE = F.linear(rows_ND.float(), self.router.weight.float()).sigmoid()
        _, index_NK = stable_topk(score_NE.detach() + self.selection_bias, self.moe.top_k)
        selected_NK = score_NE.gather(1, index_NK)
        self.last_selected = torch.bincount(index_NK.flatten(), minlength=self.moe.experts)
        return index_NK, selected_NK / selected_NK.sum(1, keepdim=True)


def places_by_expert(index_NK: Tensor, experts: int) -> tuple[Tensor, ...]:
    """For each expert the places, row * K + rank, where it was selected: in ascending order. A GPU is waited for once, not per expert."""
    flat = index_NK.flatten()
    places: tuple[Tensor, ...] = flat.argsort(stable=True).split(torch.bincount(flat, minlength=experts).tolist())
    return places


class Block(nn.Module):
    """Cross attention, self attention, FFN or experts; each pre-norm with a residual after it."""

    def __init__(self, config: OneRecConfig, layer: int) -> None:
        super().__init__()
        self.kv_set = config.kv_set(layer)
        self.cross_norm, self.self_norm, self.ffn_norm = (nn.RMSNorm(config.d_model, NORM_EPSILON) for _ in range(3))
        self.cross_attention, self.self_attention = CrossAttention(config), SelfAttention(config)
        self.ffn: nn.Module
        if config.is_moe(layer):
            assert config.moe is not None
            self.ffn = MixtureOfExperts(config.d_model, config.moe)
        else:
            self.ffn = SwiGlu(config.d_model, config.ffn_hidden)

    def forward(self, h_BRTD: Tensor, context: Context) -> Tensor:
        h_BRTD = h_BRTD + self.cross_attention(self.cross_norm(h_BRTD), context.sets[self.kv_set], context.valid_BS)
        h_BRTD = h_BRTD + self.self_attention(self.self_norm(h_BRTD))
        output_BRTD: Tensor = h_BRTD + self.ffn(self.ffn_norm(h_BRTD))
        return output_BRTD


class OneRec(nn.Module):
    """The whole model.

    The token embedding holds BOS in row 0, then the first codebook, then the second; the third
    token of an item is never an input.
    """

    def __init__(self, config: OneRecConfig) -> None:
        super().__init__()
        self.config = config
        self.context = ContextProcessor(config)
        self.token_embedding = nn.Embedding(1 + (LEVELS - 1) * config.codebook, config.d_model)
        self.position_embedding = nn.Embedding(LEVELS, config.d_model)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.head_norms = nn.ModuleList(nn.RMSNorm(config.d_model, NORM_EPSILON) for _ in range(LEVELS))
        self.heads = nn.ModuleList(linear(config.d_model, config.codebook) for _ in range(LEVELS))

    def forward(self, features_BSF: Tensor, lengths_B3: Tensor, prefixes_BRT: Tensor) -> Tensor:
        """Logits [B, R, T + 1, V] of the next token after each position of each prefix.

        Args:
            features_BSF: Dense features of the context tokens: static, short-term, long-term, then padding.
            lengths_B3: Tokens of each pathway, int64.
            prefixes_BRT: Semantic IDs decoded so far, int64, T from 0 to 2.
        """
        return self.decode(self.context(features_BSF, lengths_B3), prefixes_BRT)

    def decode(self, context: Context, prefixes_BRT: Tensor) -> Tensor:
        """Like forward, for a context that was processed before."""
        offsets_T = 1 + torch.arange(prefixes_BRT.shape[-1], device=prefixes_BRT.device) * self.config.codebook
        tokens_BRT = F.pad(prefixes_BRT + offsets_T, (1, 0), value=0)
        h_BRTD = self.token_embedding(tokens_BRT) + self.position_embedding.weight[: tokens_BRT.shape[-1]]
        for block in self.blocks:
            h_BRTD = block(h_BRTD, context)
        positions = h_BRTD.unbind(2)
        return torch.stack([head(norm(h)) for h, norm, head in zip(positions, self.head_norms, self.heads, strict=False)], 2)
