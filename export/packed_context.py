"""The context processor, and attention to what it gives: in FP16, or in FP8 in the blocks where the precision asks for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..calibration.targets import fp8_attention
from ..models.config import NORM_EPSILON
from ..models.layout import layout
from ..operators import fp8
from ..operators.context_attention import context_attention
from ..operators.context_attention_fp8 import context_attention_fp8
from ..operators.context_codes import context_key_codes, context_value_codes
from ..operators.context_features import context_features
from ..operators.context_norm import context_norm
from ..operators.linear import linear
from ..operators.operator import scope
from .packed import TensorSource, norm_bound

FEATURE_ALIGNMENT = 16  # FP16 tensor cores want K in multiples of 16; feature widths are 3 * embed_dim


class KeyValue(NamedTuple):
    """Keys and values of a set: FP16 [B, G, S, d]; or E4M3 codes in blocks of tokens (operators/context_codes.py) with their scales [1]."""

    key: Tensor
    value: Tensor
    scales: tuple[Tensor, Tensor] | None = None


def attend(query_ND: Tensor, context: KeyValue, lengths_B: Tensor, rows: int) -> Tensor:
    """FP16 [N, D]: `rows` rows of each request attend to its context."""
    if context.scales is None:
        return context_attention(query_ND, context.key, context.value, lengths_B, rows=rows)[0]
    key_scale, value_scale = context.scales
    return context_attention_fp8(query_ND, context.key, key_scale, context.value, value_scale, lengths_B, rows=rows)[0]


class ContextEncoder(nn.Module):
    """Three pathway linears as one matrix: a token's features stand in the columns of its pathway, zero elsewhere."""

    weight: Tensor

    def __init__(self, source: TensorSource) -> None:
        super().__init__()
        self.config, self.in_fp8 = source.config, fp8_attention(source.config, source.scheme)
        coded, features = self._sets(self.in_fp8), self.config.feature_width
        self.width = features + -features % FEATURE_ALIGNMENT
        weights = [F.pad(source.tensor(f"{name}.weight"), (0, self.width - features)) for name in layout(self.config).names("context")]
        self.register_buffer("weight", torch.cat(weights, 1))
        for index in range(self.config.l_kv):
            for role in ("key", "value")[: self.config.s_kv]:
                norm = source.tensor(f"context.{role}_norms.{index}.weight")
                self.register_buffer(f"{role}_norm_{index}", norm)
                if index in coded:
                    self.register_buffer(f"{role}_scale_{index}", fp8.scale_of(norm_bound(norm)).reshape(1))

    def forward(self, features_BSF: Tensor, lengths_B3: Tensor) -> list[KeyValue]:
        """What each block attends to; blocks of one set and form share it.

        Args:
            features_BSF: FP16.
            lengths_B3: INT64.
        """
        with scope("features"):
            (placed_NX,) = context_features(features_BSF, lengths_B3, width=self.width)
        with scope("linear"):
            (projected_NX,) = linear(placed_NX, self.weight)
        chunks = projected_NX.view(*features_BSF.shape[:2], len(self.weight)).split(self.config.d_kv, -1)
        lengths_B, blocks = lengths_B3.sum(1), frozenset(range(self.config.n_layers))
        values = {index: self._values(chunks, index, lengths_B) for index in self._sets(blocks - self.in_fp8)}
        codes = {index: self._codes(chunks, index, lengths_B) for index in self._sets(self.in_fp8)}
        return [(codes if block in self.in_fp8 else values)[self.config.kv_set(block)] for block in sorted(blocks)]

    @contextmanager
    def in_fp16(self) -> Iterator[None]:
        """While this lasts keys and values are in FP16, and so is attention to them, whatever the precision says."""
        asked, self.in_fp8 = self.in_fp8, frozenset()
        try:
            yield
        finally:
            self.in_fp8 = asked

    def _sets(self, blocks: frozenset[int]) -> list[int]:
        """The sets that some blocks attend to, in order."""
        return sorted({self.config.kv_set(block) for block in blocks})

    def _values(self, chunks: Sequence[Tensor], index: int, lengths_B: Tensor) -> KeyValue:
        first = index * self.config.s_kv
        with scope(f"key_norm_{index}"):
            (key,) = context_norm(chunks[first], getattr(self, f"key_norm_{index}"), lengths_B, epsilon=NORM_EPSILON)
        if self.config.s_kv == 1:
            return KeyValue(key, key)
        with scope(f"value_norm_{index}"):
            (value,) = context_norm(chunks[first + 1], getattr(self, f"value_norm_{index}"), lengths_B, epsilon=NORM_EPSILON)
        return KeyValue(key, value)

    def _codes(self, chunks: Sequence[Tensor], index: int, lengths_B: Tensor) -> KeyValue:
        """Keys and values are laid out differently, also where they are the same chunk."""
        first, roles = index * self.config.s_kv, ("key", "value" if self.config.s_kv == 2 else "key")
        weights = [getattr(self, f"{role}_norm_{index}") for role in roles]
        key_scale, value_scale = (getattr(self, f"{role}_scale_{index}") for role in roles)
        value_chunk = chunks[first + self.config.s_kv - 1]
        with scope(f"key_codes_{index}"):
            (key,) = context_key_codes(chunks[first], weights[0], lengths_B, key_scale, epsilon=NORM_EPSILON)
        with scope(f"value_codes_{index}"):
            (value,) = context_value_codes(value_chunk, weights[1], lengths_B, value_scale, epsilon=NORM_EPSILON)
        return KeyValue(key, value, (key_scale, value_scale))
