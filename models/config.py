"""Hyper-parameters of OneRec-V2 and the published sizes. Sources: arXiv 2508.20900, table 5 and sections 3 to 5."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..core.errors import CheckpointError

LEVELS = 3  # semantic-ID tokens of an item
PATHWAYS = ("static", "short_term", "long_term")  # order of a context's tokens
NORM_EPSILON = 1e-6
# Far above every published model: what is larger is a slip, and would cost minutes and gigabytes before the message.
MAX_WIDTH = 1 << 17
MAX_EXPERTS = 1 << 13  # of all layers


class MoeConfig(BaseModel):
    """Mixture of experts: `shared` experts see every token, `top_k` of `experts` are routed to."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    experts: int = Field(ge=1, le=4096)
    top_k: int = Field(ge=1)
    hidden: int = Field(ge=1, le=MAX_WIDTH)
    shared: int = Field(1, ge=0, le=64)
    dense_layers: int = Field(2, ge=0, le=1024)  # the first blocks keep a dense FFN

    @model_validator(mode="after")
    def _consistent(self) -> MoeConfig:
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} exceeds {self.experts} experts")
        return self


class OneRecConfig(BaseModel):
    """One model. `g_kv` 0 means n_heads, `ffn_hidden` 0 means 4 * d_model (the papers' defaults)."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    d_model: int = Field(ge=1, le=MAX_WIDTH)
    n_layers: int = Field(ge=1, le=1024)
    n_heads: int = Field(ge=1, le=MAX_WIDTH)
    d_head: int = Field(ge=1, le=MAX_WIDTH)
    embed_dim: int = Field(ge=1, le=MAX_WIDTH)
    codebook: int = Field(8192, ge=2, le=1 << 24)
    l_kv: int = Field(1, ge=1)
    s_kv: int = Field(1, ge=1, le=2)
    g_kv: int = Field(0, ge=0)
    ffn_hidden: int = Field(0, ge=0, le=4 * MAX_WIDTH)
    moe: MoeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _defaults(cls, values: Any) -> Any:
        if isinstance(values, dict):
            values = dict(values)
            values["g_kv"] = values.get("g_kv") or values.get("n_heads")
            if isinstance(values.get("d_model"), int):
                values["ffn_hidden"] = values.get("ffn_hidden") or 4 * values["d_model"]
        return values

    @model_validator(mode="after")
    def _consistent(self) -> OneRecConfig:
        if self.n_heads * self.d_head != self.d_model:
            raise ValueError(f"n_heads * d_head = {self.n_heads * self.d_head} must equal d_model = {self.d_model}")
        if self.n_heads % self.g_kv:
            raise ValueError(f"g_kv = {self.g_kv} must divide n_heads = {self.n_heads}")
        if self.l_kv > self.n_layers:
            raise ValueError(f"l_kv = {self.l_kv} exceeds n_layers = {self.n_layers}")
        if self.moe is not None and self.n_layers * self.moe.experts > MAX_EXPERTS:
            raise ValueError(f"n_layers * experts = {self.n_layers * self.moe.experts} exceeds {MAX_EXPERTS}")
        return self

    @property
    def feature_width(self) -> int:
        """Width of one context token: three semantic-ID embeddings (derived; arXiv 2508.20900 gives embed_dim)."""
        return LEVELS * self.embed_dim

    @property
    def d_kv(self) -> int:
        """Width of one key or value of one token."""
        return self.g_kv * self.d_head

    @property
    def d_context(self) -> int:
        """Width of a context token after its linear layer: every key and value chunk side by side."""
        return self.s_kv * self.l_kv * self.d_kv

    def kv_set(self, layer: int) -> int:
        """The key/value set a layer attends to."""
        return layer * self.l_kv // self.n_layers

    def is_moe(self, layer: int) -> bool:
        """Whether a layer has experts instead of a dense feed-forward block."""
        return self.moe is not None and layer >= self.moe.dense_layers

    def with_changes(self, **changes: Any) -> OneRecConfig:
        """A checked copy with some fields changed; `g_kv` and `ffn_hidden` follow where they were at their defaults."""
        values = self.model_dump()
        if self.g_kv == self.n_heads:
            del values["g_kv"]
        if self.ffn_hidden == 4 * self.d_model:
            del values["ffn_hidden"]
        return parse_config(values | changes)


def parse_config(values: Any, *, where: str = "config.json") -> OneRecConfig:
    """Check a configuration.

    Raises:
        CheckpointError: A key is unknown or missing, or the values contradict each other.
    """
    try:
        return OneRecConfig.model_validate(values)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, e['loc'])) or 'config'}: {e['msg']}" for e in error.errors())
        hint = "correct these keys; docs/formats.md describes them"
        raise CheckpointError(f"the model configuration is not valid: {problems}", where=where, hint=hint) from None


def _dense(d_model: int, n_layers: int, n_heads: int, d_head: int, embed_dim: int) -> OneRecConfig:
    return parse_config({"d_model": d_model, "n_layers": n_layers, "n_heads": n_heads, "d_head": d_head, "embed_dim": embed_dim})


SIZES: dict[str, OneRecConfig] = {
    "0.1B": _dense(640, 12, 10, 64, 32),
    "0.2B": _dense(896, 12, 14, 64, 45),
    "0.5B": _dense(1408, 14, 11, 128, 70),
    "1B": _dense(1792, 18, 14, 128, 90),
    "2B": _dense(2304, 22, 18, 128, 115),
    "4B": _dense(2944, 26, 23, 128, 147),
    "8B": _dense(3584, 34, 28, 128, 179),
    "4B-A0.5B": _dense(1408, 14, 11, 128, 70).with_changes(moe=MoeConfig(experts=53, top_k=3, hidden=1408)),
}


def counted_parameters(config: OneRecConfig, *, active: bool = False) -> int:
    """Parameters as the papers count them: attention projections, FFN and experts only.

    `active`: those one token passes through (routed top-k and shared experts instead of all).
    """
    attention = config.n_layers * 6 * config.d_model**2  # q, o of cross attention; q, k, v, o of self attention
    dense = 3 * config.d_model * config.ffn_hidden
    if config.moe is None:
        return attention + config.n_layers * dense
    moe = config.moe
    dense_layers = min(moe.dense_layers, config.n_layers)
    experts = (moe.top_k if active else moe.experts) + moe.shared
    return attention + dense_layers * dense + (config.n_layers - dense_layers) * experts * 3 * config.d_model * moe.hidden
