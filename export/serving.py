"""The serving graph: the packed model written in operators. The only forward pass beside models/onerec.py.

One call serves a batch: context processor, three decode steps, beam step after each. `ServingModel`
searches beams, `ItemServingModel` beams that follow a catalogue; `ScoringModel` scores given paths with the same body.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.graph_io import GraphIO
from ..core.precision import Granularity
from ..core.recipe import ExportOptions
from ..models.config import LEVELS
from ..models.layout import layout
from ..operators.beam_self_attention import beam_self_attention_1, beam_self_attention_2
from ..operators.beam_step import beam_groups, beam_step
from ..operators.beam_step_items import beam_step_items_1, beam_step_items_2, beam_step_items_3
from ..operators.operator import scope
from ..operators.token_score import token_score
from .contracts import ItemSizes, item_serving_io, scoring_io, serving_io
from .packed import PackedFfn, PackedLinear, PackedMoe, PackedNorm, PackedQuantizer, TensorSource, attended_bound, granularity_of
from .packed_context import ContextEncoder, KeyValue, attend


class PackedBlock(nn.Module):
    """One decoder block at one step; `history` holds this block's q, k, v of the steps before."""

    def __init__(self, source: TensorSource, layer: int) -> None:
        super().__init__()
        config, block = source.config, f"blocks.{layer}"
        linears = layout(config)
        self.heads = config.n_heads
        cross_q, cross_o = linears.names("cross q", layer), linears.names("cross o", layer)
        query, out = granularity_of(source, "cross q", layer), granularity_of(source, "cross o", layer)
        attended = out if out is Granularity.NONE else source.scheme.attended
        self.cross_norm = PackedNorm(source, f"{block}.cross_norm", query, cross_q)
        self.cross_q = PackedLinear(source, cross_q, query)
        self.cross_quantizer = PackedQuantizer(source, attended, cross_o, attended_bound(source, config.kv_set(layer)))
        self.cross_o = PackedLinear(source, cross_o, out)
        self_qkv, self_o = linears.names("self qkv", layer), linears.names("self o", layer)
        projected, out = granularity_of(source, "self qkv", layer), granularity_of(source, "self o", layer)
        self.self_norm = PackedNorm(source, f"{block}.self_norm", projected, self_qkv)
        self.self_qkv = PackedLinear(source, self_qkv, projected)
        self.self_quantizer = PackedQuantizer(source, out, self_o)
        self.self_o = PackedLinear(source, self_o, out)
        self.ffn = PackedMoe(source, layer) if config.is_moe(layer) else PackedFfn(source, layer)

    def forward(
        self, h_ND: Tensor, context: KeyValue, lengths_B: Tensor, rows: int, history: list[Tensor], parent_BR: Tensor | None
    ) -> Tensor:
        with scope("cross"):
            h_ND = self._cross_attention(h_ND, context, lengths_B, rows)
        with scope("self"):
            h_ND = self._self_attention(h_ND, rows, history, parent_BR)
        with scope("ffn"):
            output: Tensor = self.ffn(h_ND)
        return output

    def _cross_attention(self, h_ND: Tensor, kv: KeyValue, lengths_B: Tensor, rows: int) -> Tensor:
        with scope("norm"):
            x, _ = self.cross_norm(h_ND)
        with scope("q"):
            query = self.cross_q(x)
        with scope("attention"):
            attended = attend(query, kv, lengths_B, rows)
        with scope("quantize"):
            attended_x = self.cross_quantizer(attended)
        with scope("o"):
            output: Tensor = self.cross_o(attended_x, h_ND)
        return output

    def _self_attention(self, h_ND: Tensor, rows: int, history: list[Tensor], parent_BR: Tensor | None) -> Tensor:
        with scope("norm"):
            x, _ = self.self_norm(h_ND)
        with scope("qkv"):
            qkv = self.self_qkv(x)
        with scope("attention"):
            if not history:
                attended = qkv[:, -h_ND.shape[1] :]  # one position attends to itself alone: its value
            elif len(history) == 1:
                (attended,) = beam_self_attention_1(qkv, history[0], rows=rows, heads=self.heads)
            else:
                assert parent_BR is not None
                (attended,) = beam_self_attention_2(qkv, *history, parent_BR, rows=rows, heads=self.heads)
        history.append(qkv)
        with scope("quantize"):
            attended_x = self.self_quantizer(attended)
        with scope("o"):
            output: Tensor = self.self_o(attended_x, h_ND)
        return output


class Decoder(nn.Module):
    """Embedding, blocks and heads: what the serving graph and the scoring graph share."""

    token_embedding: Tensor
    position_embedding: Tensor

    def __init__(self, source: TensorSource) -> None:
        super().__init__()
        self.config, self.scheme = source.config, source.scheme
        self.context = ContextEncoder(source)
        self.register_buffer("token_embedding", source.tensor("token_embedding.weight"))
        self.register_buffer("position_embedding", source.tensor("position_embedding.weight"))
        self.blocks = nn.ModuleList(PackedBlock(source, layer) for layer in range(self.config.n_layers))
        self.head_norms = nn.ModuleList(PackedNorm(source, f"head_norms.{t}", Granularity.NONE) for t in range(LEVELS))
        heads = layout(self.config).names("head")
        self.heads = nn.ModuleList(PackedLinear(source, [name], Granularity.NONE) for name in heads)

    def embed(self, step: int, tokens_N: Tensor) -> Tensor:
        """Hidden state FP16 [N, D] of token numbers INT64 [N]: row 0 is BOS, then one codebook after the other."""
        return (F.embedding(tokens_N, self.token_embedding).float() + self.position_embedding[step].float()).half()

    def first_tokens(self, lengths_B3: Tensor) -> Tensor:
        return torch.zeros_like(lengths_B3[:, 0])

    def later_tokens(self, step: int, sids_BR: Tensor) -> Tensor:
        """Token numbers of the semantic IDs chosen at the step before."""
        return (sids_BR + (1 + (step - 1) * self.config.codebook)).view(-1)

    def logits(
        self,
        step: int,
        tokens_N: Tensor,
        contexts: list[KeyValue],
        lengths_B: Tensor,
        rows: int,
        history: list[list[Tensor]],
        parent_BR: Tensor | None = None,
    ) -> Tensor:
        """Logits FP16 [N, V] of one step; extends the history of every block."""
        h_ND = self.embed(step, tokens_N)
        for number, (block, context) in enumerate(zip(self.blocks, contexts, strict=True)):
            with scope(f"blocks.{number}"):
                h_ND = block(h_ND, context, lengths_B, rows, history[number], parent_BR)
        with scope("head_norm"):
            x, _ = self.head_norms[step](h_ND)
        with scope("head"):
            logits_NV: Tensor = self.heads[step](x)
        return logits_NV


class Step(NamedTuple):
    """Where a beam step stands: its number, rows before it, beams to keep, logits FP16 [N, V], scores FP32 [B, R] of the rows, and
    the codes INT64 [B, R] of each level decoded so far."""

    number: int
    rows: int
    width: int
    logits_NV: Tensor
    scores_BR: Tensor
    prefix: list[Tensor]


BeamChoice = Callable[[Step], tuple[Tensor, ...]]  # scores, parents and tokens, as BeamStep gives them


class ServingModel(nn.Module):
    """Beam search in one graph: features and lengths in, semantic IDs and scores out."""

    def __init__(self, source: TensorSource, beam: Sequence[int]) -> None:
        super().__init__()
        assert len(beam) == LEVELS
        self.decoder = Decoder(source)
        self.widths = effective_widths(beam, source.config.codebook)

    @property
    def io(self) -> GraphIO:
        """The contract of its graph."""
        return serving_io(self.decoder.config.feature_width, self.widths[-1])

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Semantic IDs INT64 [B, W, 3] and log-probabilities FP32 [B, W], best first.

        Args:
            features: FP16 [B, S, F]; static, short-term, long-term tokens, then padding of any content.
            lengths: INT64 [B, 3]; tokens of each pathway.
        """
        codebook = self.decoder.config.codebook
        prefix, scores_BW = self.search(
            features,
            lengths,
            lambda step: beam_step(step.logits_NV, step.scores_BR, **beam_groups(step.rows, codebook, step.width)),
        )
        return torch.stack(prefix, -1), scores_BW

    def search(self, features: Tensor, lengths: Tensor, choose: BeamChoice) -> tuple[list[Tensor], Tensor]:
        """The codes INT64 [B, W] of each level and the scores FP32 [B, W] that a way to choose beams leads to."""
        decoder = self.decoder
        with scope("context"):
            contexts = decoder.context(features, lengths)
        total_B = lengths.sum(1)
        history: list[list[Tensor]] = [[] for _ in decoder.blocks]
        tokens_N = decoder.first_tokens(lengths)
        scores_BR = torch.zeros_like(lengths[:, :1], dtype=torch.float32)
        prefix: list[Tensor] = []  # one [B, R] per level decoded so far
        parent_BR: Tensor | None = None
        for step, width in enumerate(self.widths):
            rows = 1 if step == 0 else self.widths[step - 1]
            with scope(f"step{step}"):
                logits = decoder.logits(step, tokens_N, contexts, total_B, rows, history, parent_BR)
                with scope("beam"):
                    scores_BR, parent_BR, chosen_BR = choose(Step(step, rows, width, logits, scores_BR, prefix))
            prefix = [level.gather(1, parent_BR) for level in prefix] + [chosen_BR]
            if step + 1 < LEVELS:
                tokens_N = decoder.later_tokens(step + 1, chosen_BR)
        return prefix, scores_BR


class ItemServingModel(ServingModel):
    """Beam search that follows a catalogue: the rules of each request and the resident index come in beside the context.

    A place without a beam has the code -1. What the decoder computes for it, the token before the codebook of its step, is not used.
    """

    def __init__(self, source: TensorSource, beam: Sequence[int], sizes: ItemSizes) -> None:
        super().__init__(source, beam)
        self.sizes = sizes

    @property
    def io(self) -> GraphIO:
        """The contract of its graph."""
        return item_serving_io(self.decoder.config.feature_width, self.widths[-1], self.sizes)

    def forward(  # type: ignore[override]  # more inputs, in the order and by the names of its own contract
        self,
        features: Tensor,
        lengths: Tensor,
        limits: Tensor,
        allowed: Tensor,
        excluded: Tensor,
        first_classes: Tensor,
        pair_bits: Tensor,
        pair_ranks: Tensor,
        pair_classes: Tensor,
        pair_rows: Tensor,
        entries: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Semantic IDs INT64 [B, W, 3] and log-probabilities FP32 [B, W], best first; -1 and -inf where there are fewer.

        Args:
            features, lengths: As of `ServingModel`.
            limits, allowed, excluded: Rules of each request: runtime/item_rules.py.
            first_classes, pair_bits, pair_ranks, pair_classes, pair_rows, entries: The index: runtime/item_index.py.
        """
        pairs = (pair_bits, pair_ranks)

        def choose(step: Step) -> tuple[Tensor, ...]:
            before, width = (step.logits_NV, step.scores_BR, *step.prefix), step.width
            if step.number == 0:
                return beam_step_items_1(*before, first_classes, limits, allowed, width=width)
            if step.number == 1:
                return beam_step_items_2(*before, *pairs, pair_classes, limits, allowed, width=width)
            return beam_step_items_3(*before, *pairs, pair_rows, entries, limits, allowed, excluded, width=width)

        prefix, scores_BW = self.search(features, lengths, choose)
        none_BW = prefix[-1] < 0
        return torch.stack([torch.where(none_BW, -1, level) for level in prefix], -1), scores_BW


def serving_model(source: TensorSource, options: ExportOptions) -> ServingModel:
    """The serving model that the options of an export ask for."""
    sizes = ItemSizes.of(options, source.config.codebook)
    return ServingModel(source, options.beam) if sizes is None else ItemServingModel(source, options.beam, sizes)


class ScoringModel(nn.Module):
    """The same body along given paths: gates measure parity on it, and users score candidates with it."""

    def __init__(self, decoder: Decoder, paths: int) -> None:
        super().__init__()
        self.decoder, self.paths = decoder, paths

    @property
    def io(self) -> GraphIO:
        """The contract of its graph."""
        return scoring_io(self.decoder.config.feature_width, self.paths)

    def forward(self, features: Tensor, lengths: Tensor, sids: Tensor) -> Tensor:
        """Log-probability FP32 [B, W, 3] of each token of the paths `sids` INT64 [B, W, 3]."""
        decoder = self.decoder
        with scope("context"):
            contexts = decoder.context(features, lengths)
        total_B = lengths.sum(1)
        history: list[list[Tensor]] = [[] for _ in decoder.blocks]
        own_row_BR = torch.arange(self.paths, device=sids.device).expand(sids.shape[0], -1)
        scores: list[Tensor] = []
        for step in range(LEVELS):
            tokens_N = decoder.first_tokens(lengths) if step == 0 else decoder.later_tokens(step, sids[..., step - 1])
            rows = 1 if step == 0 else self.paths
            with scope(f"step{step}"):
                logits = decoder.logits(step, tokens_N, contexts, total_B, rows, history, own_row_BR if step == 2 else None)
                with scope("score"):
                    scores.extend(token_score(logits, sids[..., step]))
        return torch.stack(scores, -1)


def effective_widths(beam: Sequence[int], codebook: int) -> list[int]:
    """Beams really kept after each step: no more than there are candidates."""
    widths: list[int] = []
    for width in beam:
        widths.append(min(width, (widths[-1] if widths else 1) * codebook))
    return widths
