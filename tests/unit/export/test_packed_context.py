"""The context processor and attention to it: what FP8 attention reads is what FP16 attention reads, but for its codes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from onerec_trt.core.difference import difference
from onerec_trt.export.packed_context import ContextEncoder, attend

LENGTHS = [[1, 2, 3], [0, 0, 7], [0, 0, 0], [100, 60, 3]]
ROWS = 5


@pytest.mark.parametrize("shared", [True, False], ids=["keys-are-values", "keys-and-values-apart"])
def test_fp8_attention_is_attention_of_codes(make_model, make_packed, make_batch, config, shared):
    config = config.with_changes(l_kv=2, s_kv=1 if shared else 2)
    model, batch = make_model(config), make_batch(config, LENGTHS)
    query, lengths = torch.randn(len(LENGTHS) * ROWS, config.n_heads * config.d_head).half(), batch.lengths.sum(1)
    found = []
    for precision in ("fp8-paper", "fp8-paper-attention"):
        sets = ContextEncoder(make_packed(model, precision))(batch.features, batch.lengths)
        found.append([attend(query, kv, lengths, ROWS).float().numpy() for kv in sets])
    for values, codes in zip(*found, strict=True):
        assert 1e-4 < difference(codes, values) < 3e-3
    assert difference(*found[0]) > 0.1, "another set would show"


def test_attention_can_be_asked_for_in_fp16(make_model, make_packed, make_batch, config):
    model, batch, query = make_model(config), make_batch(config, LENGTHS), torch.randn(len(LENGTHS), config.n_heads * config.d_head).half()
    encoders = [ContextEncoder(make_packed(model, precision)) for precision in ("fp8-paper", "fp8-paper-attention")]
    values, before = (encoder(batch.features, batch.lengths)[0] for encoder in encoders)
    with encoders[1].in_fp16():
        asked = encoders[1](batch.features, batch.lengths)[0]
    after = encoders[1](batch.features, batch.lengths)[0]
    attended, in_fp16 = (attend(query, kv, batch.lengths.sum(1), 1) for kv in (values, asked))
    assert torch.equal(attended, in_fp16)
    assert before.scales is not None
    assert after.scales is not None


def test_a_block_that_is_kept_attends_in_fp16_to_the_set_that_others_have_in_codes(make_model, make_packed, make_batch, config):
    config = config.with_changes(n_layers=4, l_kv=2)
    model, batch = make_model(config), make_batch(config, LENGTHS)
    whole = make_packed(model, "fp8-paper-attention")
    kept = replace(whole, scheme=replace(whole.scheme, keep_fp16=("blocks.[03].cross.attention",)))
    values, codes, found = (ContextEncoder(each)(batch.features, batch.lengths) for each in (make_packed(model, "fp8-paper"), whole, kept))
    assert [context.scales is None for context in found] == [True, False, False, True]
    for block, context in enumerate(found):
        expected = (values if block in (0, 3) else codes)[block]
        assert torch.equal(context.key.view(torch.uint8), expected.key.view(torch.uint8))
        assert torch.equal(context.value.view(torch.uint8), expected.value.view(torch.uint8))
    assert not torch.equal(found[0].key, found[3].key), "two sets"


def test_nothing_is_coded_for_a_set_that_nobody_reads_in_codes(make_model, make_packed, make_batch, config):
    config = config.with_changes(n_layers=4, l_kv=2)
    whole = make_packed(make_model(config), "fp8-paper-attention")
    encoder = ContextEncoder(replace(whole, scheme=replace(whole.scheme, keep_fp16=("blocks.[01].cross.attention",))))
    assert {name for name, _ in encoder.named_buffers() if "scale" in name} == {"key_scale_1", "value_scale_1"}


def test_both_precisions_have_one_checkpoint(make_model, make_packed, config):
    """Scales of FP8 attention come from the norms' weights."""
    stored = [make_packed(make_model(config), precision).stored for precision in ("fp8-paper", "fp8-paper-attention")]
    assert stored[0].keys() == stored[1].keys()
    assert all(torch.equal(tensor.view(torch.uint8), stored[1][name].view(torch.uint8)) for name, tensor in stored[0].items())
