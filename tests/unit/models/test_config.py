"""Configurations: the published sizes and parameter counts, and nothing inconsistent gets through."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from onerec_trt.core.errors import CheckpointError
from onerec_trt.models.config import SIZES, OneRecConfig, counted_parameters, parse_config
from onerec_trt.models.onerec import MixtureOfExperts, OneRec, SwiGlu

VALID: dict[str, Any] = {"d_model": 64, "n_layers": 2, "n_heads": 2, "d_head": 32, "embed_dim": 8}


def counted_in_modules(config: OneRecConfig, *, active: bool = False) -> int:
    """Attention projections, FFN and experts of a real model on the meta device; experts that are not active left out."""
    with torch.device("meta"):
        model = OneRec(config)
    total = 0
    for block in model.blocks:
        for part in (block.cross_attention, block.self_attention):
            total += sum(p.numel() for p in part.parameters())
        if isinstance(block.ffn, MixtureOfExperts):
            routed = block.ffn.experts[: block.ffn.moe.top_k] if active else block.ffn.experts
            total += sum(p.numel() for expert in [*routed, *block.ffn.shared] for p in expert.parameters())
        else:
            assert isinstance(block.ffn, SwiGlu)
            total += sum(p.numel() for p in block.ffn.parameters())
    return total


# d_model, layers, heads, d_head, embed_dim: arXiv 2508.20900, table 5. The last column is layers * (6 + 12) * d_model^2,
# which is what such a block holds: 6 projections and an FFN of 3 * 4 * d_model^2.
TABLE_5 = {
    "0.1B": (640, 12, 10, 64, 32, 88_473_600),
    "0.2B": (896, 12, 14, 64, 45, 173_408_256),
    "0.5B": (1408, 14, 11, 128, 70, 499_580_928),
    "1B": (1792, 18, 14, 128, 90, 1_040_449_536),
    "2B": (2304, 22, 18, 128, 115, 2_102_132_736),
    "4B": (2944, 26, 23, 128, 147, 4_056_219_648),
    "8B": (3584, 34, 28, 128, 179, 7_861_174_272),
}


@pytest.mark.parametrize("name", TABLE_5)
def test_the_dense_sizes_of_the_paper(name: str) -> None:
    config = SIZES[name]
    *shape, parameters = TABLE_5[name]
    assert [config.d_model, config.n_layers, config.n_heads, config.d_head, config.embed_dim] == shape
    assert (config.codebook, config.ffn_hidden, config.g_kv, config.moe) == (8192, 4 * config.d_model, config.n_heads, None)
    assert counted_in_modules(config) == counted_parameters(config) == counted_parameters(config, active=True) == parameters


def test_the_mixture_of_experts_of_the_paper() -> None:
    config = SIZES["4B-A0.5B"]
    assert set(SIZES) == {*TABLE_5, "4B-A0.5B"}
    assert counted_in_modules(config) == counted_parameters(config) == 4_068_016_128  # 4.07 B
    assert counted_in_modules(config, active=True) == counted_parameters(config, active=True) == 499_580_928  # 0.4996 B


@settings(max_examples=25)
@given(
    st.integers(1, 3),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 8),
    st.integers(0, 40),
    st.none() | st.fixed_dictionaries({name: st.integers(1, 4) for name in ("experts", "top_k", "hidden", "shared", "dense_layers")}),
)
def test_counted_parameters_are_those_of_the_modules(layers: int, heads: int, d_head: int, ffn: int, moe: dict[str, int] | None) -> None:
    assume(moe is None or moe["top_k"] <= moe["experts"])
    values = {"n_layers": layers, "n_heads": heads, "d_head": d_head, "d_model": heads * d_head, "ffn_hidden": ffn, "moe": moe}
    config = parse_config(VALID | values | {"codebook": 8})
    assert counted_in_modules(config) == counted_parameters(config)
    assert counted_in_modules(config, active=True) == counted_parameters(config, active=True)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"d_head": 16}, "n_heads"),
        ({"g_kv": 3}, "g_kv"),
        ({"l_kv": 3}, "l_kv"),
        ({"s_kv": 3}, "s_kv"),
        ({"n_layers": 0}, "n_layers"),
        ({"codebook": 1}, "codebook"),
        ({"d_modle": 64}, "d_modle"),
        ({"d_model": "wide"}, "d_model"),
        ({"g_kv": "0"}, "g_kv"),
        ({"ffn_hidden": "0"}, "ffn_hidden"),
        ({"n_layers": True}, "n_layers"),
        ({"moe": {"experts": 2, "top_k": 3, "hidden": 8}}, "top_k"),
        ({"moe": {"experts": 2, "top_k": 1, "hidden": 8, "capacity": 1}}, "capacity"),
    ],
)
def test_a_contradiction_or_unknown_key_is_named(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        parse_config(VALID | changes)


@pytest.mark.parametrize("values", [None, [], "text", {}, 3])
def test_what_is_no_configuration(values: Any) -> None:
    with pytest.raises(CheckpointError, match="not valid"):
        parse_config(values)


JSON_SCALARS = st.none() | st.booleans() | st.integers(-3, 70) | st.floats() | st.text("0123", max_size=3)


@given(st.dictionaries(st.sampled_from([*OneRecConfig.model_fields, "other"]), JSON_SCALARS, max_size=4))
def test_any_values_give_a_consistent_configuration_or_an_error(changes: dict[str, Any]) -> None:
    try:
        config = parse_config(VALID | changes)
    except CheckpointError:
        return
    assert config.n_heads * config.d_head == config.d_model
    assert config.n_heads % config.g_kv == 0
    assert config.ffn_hidden > 0
    assert "other" not in changes


@pytest.mark.parametrize("name", SIZES)
def test_a_configuration_survives_json(name: str) -> None:
    assert parse_config(SIZES[name].model_dump(mode="json")) == SIZES[name]


@pytest.mark.parametrize(("l_kv", "sets"), [(1, [0] * 18), (3, [0] * 6 + [1] * 6 + [2] * 6), (18, list(range(18)))])
def test_layers_are_spread_over_the_key_value_sets(l_kv: int, sets: list[int]) -> None:
    config = SIZES["1B"].with_changes(l_kv=l_kv)
    assert [config.kv_set(layer) for layer in range(18)] == sets


def test_width_of_a_context_token() -> None:
    config = SIZES["1B"].with_changes(l_kv=3, s_kv=2, g_kv=7)
    assert (config.d_kv, config.d_context, config.feature_width) == (7 * 128, 2 * 3 * 7 * 128, 270)
