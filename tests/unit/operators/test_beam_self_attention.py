"""BeamSelfAttention{1,2}: a history of one or two positions, ancestors by parent index."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

SIZES = [(1, 1, 32), (2, 5, 48), (37, 2, 128), (130, 3, 32)]


@pytest.mark.parametrize(("rows", "heads", "d_head"), SIZES)
def test_ragged_sizes(hold, half, rows, heads, d_head):
    batch, width, earlier = 3, 3 * heads * d_head, rows + 2  # fewer rows than beams before: a narrowing schedule
    qkv, bos, first = half(batch * rows, width), half(batch, width), half(batch * earlier, width)
    parent = torch.randint(0, earlier, (batch, rows))
    (one,) = hold("BeamSelfAttention1", qkv, bos, rows=rows, heads=heads).torch
    (two,) = hold("BeamSelfAttention2", qkv, bos, first, parent, rows=rows, heads=heads).torch
    assert one.any()
    assert (one != two).any()


def test_is_causal_attention_of_the_last_position(hold, half):
    batch, rows, heads, d_head = 2, 4, 3, 32
    width = 3 * heads * d_head
    qkv, bos, first = half(batch * rows, width), half(batch, width), half(batch * rows, width)
    parent = torch.tensor([[3, 3, 0, 1], [2, 0, 2, 2]])
    (attended,) = hold("BeamSelfAttention2", qkv, bos, first, parent, rows=rows, heads=heads).onnx
    ancestors = torch.stack([first.view(batch, rows, -1)[b, parent[b]] for b in range(batch)])
    path = torch.stack([bos[:, None].expand(-1, rows, -1), ancestors, qkv.view(batch, rows, -1)], 2).float()
    query, key, value = path.unflatten(-1, (3, heads, d_head)).permute(3, 0, 1, 4, 2, 5)
    expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)[..., -1, :]
    assert attended == pytest.approx(expected.reshape(batch * rows, -1).numpy(), abs=2e-3)


def test_no_row_reads_the_ancestor_of_another_request(both, half):
    qkv, bos, first, parent = half(3 * 2, 96), half(3, 96), half(3 * 2, 96), torch.tensor([[1, 1], [0, 1], [0, 0]])
    bad_bos, bad_first = bos.clone(), first.clone()
    bad_bos[1] = bad_first[2:4] = float("nan")
    clean = both("BeamSelfAttention2", qkv, bos, first, parent, rows=2, heads=1)
    poisoned = both("BeamSelfAttention2", qkv, bad_bos, bad_first, parent, rows=2, heads=1)
    for (before,), (after,) in ((clean.torch, poisoned.torch), (clean.onnx, poisoned.onnx)):
        assert np.array_equal(np.delete(before, slice(2, 4), 0), np.delete(after, slice(2, 4), 0))
        assert np.isnan(after[2:4]).all()


@pytest.mark.parametrize("name", ["BeamSelfAttention1", "BeamSelfAttention2"])
def test_fault_stays_in_its_row(apart, half, name):
    qkv, history = half(2 * 3, 96), (half(2, 96),)
    if name == "BeamSelfAttention2":
        history = (*history, half(2 * 3, 96), torch.tensor([[0, 1, 2], [2, 2, 0]]))
    bad = qkv.clone()
    bad[4, 3] = float("nan")
    apart(name, (qkv, *history), (bad, *history), 4, rows=3, heads=1)


def test_rows_of_zeros_average_the_values(hold):
    qkv, bos = torch.zeros(2, 96).half(), torch.zeros(1, 96).half()
    bos[0, 64:] = 1
    for (attended,) in hold("BeamSelfAttention1", qkv, bos, rows=2, heads=1):
        assert attended == pytest.approx(0.5)
