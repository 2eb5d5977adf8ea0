"""The model against plain restatements of the paper, and its promises about padding, neighbors and routing."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from onerec_trt.models.config import NORM_EPSILON, SIZES, OneRecConfig
from onerec_trt.models.onerec import Context, ContextProcessor, MixtureOfExperts, OneRec
from onerec_trt.models.requests import Batch
from torch import Tensor

MakeModel = Callable[..., OneRec]
MakeBatch = Callable[..., Batch]

KV_SHARING = [(1, 1), (1, 2), (3, 1), (9, 1), (18, 1)]  # arXiv 2508.20900: the (L_kv, S_kv) studied
KV_GROUPS = [14, 7, 2, 1]  # the G_kv studied on the 1B model of 18 layers and 14 heads
NARROW_1B = {"d_model": 56, "n_layers": 18, "n_heads": 14, "d_head": 4, "ffn_hidden": 24, "moe": None}
RAGGED = [[1, 2, 3], [0, 0, 1], [2, 0, 4], [0, 5, 0]]


def prefixes(batch: int, rows: int, steps: int, codebook: int, seed: int = 0) -> Tensor:
    return torch.randint(codebook, (batch, rows, steps), generator=torch.Generator().manual_seed(seed))


def restated(model: OneRec, features_SF: Tensor, lengths_3: list[int], tokens: list[int]) -> Tensor:
    """Logits [T + 1, V] for one request and one prefix: the paper's formulas with loops over layers, heads and positions."""
    config, norm = model.config, lambda x, w: x / torch.sqrt((x * x).mean(-1, keepdim=True) + NORM_EPSILON) * w
    pathway = [p for p, count in enumerate(lengths_3) for _ in range(count)]
    context = torch.stack([model.context.pathways[p].weight @ features_SF[s] for s, p in enumerate(pathway)])
    chunks = context.reshape(len(pathway), config.s_kv * config.l_kv, config.g_kv, config.d_head)
    embedding = [0, *(1 + level * config.codebook + token for level, token in enumerate(tokens))]
    h = model.token_embedding.weight[embedding] + model.position_embedding.weight[: len(embedding)]
    for layer, block in enumerate(model.blocks):
        kv_set = math.floor(layer * config.l_kv / config.n_layers)
        key = norm(chunks[:, kv_set * config.s_kv], model.context.key_norms[kv_set].weight)
        value = key if config.s_kv == 1 else norm(chunks[:, kv_set * config.s_kv + 1], model.context.value_norms[kv_set].weight)
        x = norm(h, block.cross_norm.weight)
        h = h + attention(config, x @ block.cross_attention.q.weight.T, key, value, causal=False) @ block.cross_attention.o.weight.T
        x, part = norm(h, block.self_norm.weight), block.self_attention
        k, v = ((x @ p.weight.T).reshape(len(x), config.n_heads, config.d_head) for p in (part.k, part.v))
        h = h + attention(config, x @ part.q.weight.T, k, v, causal=True) @ part.o.weight.T
        h = h + feed_forward(block.ffn, norm(h, block.ffn_norm.weight))
    return torch.stack([model.heads[t].weight @ norm(h[t], model.head_norms[t].weight) for t in range(len(h))])


def attention(config: OneRecConfig, query_TD: Tensor, key: Tensor, value: Tensor, *, causal: bool) -> Tensor:
    rows = []
    for position, query in enumerate(query_TD):
        seen = position + 1 if causal else len(key)
        heads = []
        for head, q in enumerate(query.reshape(config.n_heads, config.d_head)):
            group = head // (config.n_heads // key.shape[1])
            weight = torch.softmax(key[:seen, group] @ q / math.sqrt(config.d_head), 0)
            heads.append(weight @ value[:seen, group])
        rows.append(torch.cat(heads))
    return torch.stack(rows)


def feed_forward(ffn: torch.nn.Module, x_TD: Tensor) -> Tensor:
    def swiglu(part: torch.nn.Module, x: Tensor) -> Tensor:
        gate, up = part.gate.weight @ x, part.up.weight @ x
        return part.down.weight @ (gate / (1 + torch.exp(-gate)) * up)

    if not isinstance(ffn, MixtureOfExperts):
        return torch.stack([swiglu(ffn, x) for x in x_TD])
    rows = []
    for x in x_TD:
        score = 1 / (1 + torch.exp(-(ffn.router.weight @ x)))
        ranked = sorted(range(len(score)), key=lambda e: (-(score[e] + ffn.selection_bias[e]).item(), e))[: ffn.moe.top_k]
        total = sum(score[e] for e in ranked)
        rows.append(sum(swiglu(ffn.experts[e], x) * score[e] / total for e in ranked) + sum(swiglu(e, x) for e in ffn.shared))
    return torch.stack(rows)


def assert_is_the_restated_model(model: OneRec, batch: Batch) -> None:
    paths = prefixes(len(batch.features_BSF), 2, 2, model.config.codebook)
    with torch.no_grad():
        logits = model(batch.features_BSF, batch.lengths_B3, paths)
        for b, lengths in enumerate(batch.lengths_B3.tolist()):
            for r in range(2):
                expected = restated(model, batch.features_BSF[b], lengths, paths[b, r].tolist())
                torch.testing.assert_close(logits[b, r], expected, rtol=1e-4, atol=1e-5)


def test_the_forward_pass_is_the_paper_with_experts(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    assert_is_the_restated_model(model, make_batch(model.config, RAGGED))


@pytest.mark.parametrize(("l_kv", "s_kv"), KV_SHARING)
def test_every_sharing_of_keys_and_values(make_model: MakeModel, make_batch: MakeBatch, l_kv: int, s_kv: int) -> None:
    model = make_model(**NARROW_1B, l_kv=l_kv, s_kv=s_kv)
    assert_is_the_restated_model(model, make_batch(model.config, RAGGED[:2]))


@pytest.mark.parametrize("g_kv", KV_GROUPS)
def test_every_number_of_key_value_groups(make_model: MakeModel, make_batch: MakeBatch, g_kv: int) -> None:
    model = make_model(**NARROW_1B, g_kv=g_kv)
    assert_is_the_restated_model(model, make_batch(model.config, RAGGED[:2]))


@pytest.mark.parametrize(("l_kv", "s_kv"), KV_SHARING)
@pytest.mark.parametrize("g_kv", KV_GROUPS)
def test_sharing_and_groups_together_at_the_size_of_the_paper(l_kv: int, s_kv: int, g_kv: int) -> None:
    config = SIZES["1B"].with_changes(l_kv=l_kv, s_kv=s_kv, g_kv=g_kv)
    with torch.device("meta"):
        processor = ContextProcessor(config)
        context = processor(torch.empty(2, 5, 270), torch.empty(2, 3, dtype=torch.int64))
    assert len(context.sets) == l_kv
    assert all(part.shape == (2, g_kv, 5, 128) for kv in context.sets for part in kv)
    assert [tuple(p.weight.shape) for p in processor.pathways] == [(s_kv * l_kv * g_kv * 128, 270)] * 3


def test_a_value_equals_its_key_only_when_shared(make_model: MakeModel, make_batch: MakeBatch) -> None:
    for s_kv in (1, 2):
        model = make_model(s_kv=s_kv)
        batch = make_batch(model.config, RAGGED)
        context: Context = model.context(batch.features_BSF, batch.lengths_B3)
        assert torch.equal(context.sets[0].key_BGSd, context.sets[0].value_BGSd) is (s_kv == 1)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_later_token_does_not_change_an_earlier_position(make_model: MakeModel, make_batch: MakeBatch, steps: int) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    whole = prefixes(4, 3, 2, 16)
    with torch.no_grad():
        short = model(batch.features_BSF, batch.lengths_B3, whole[..., :steps])
        assert short.shape == (4, 3, steps + 1, 16)
        torch.testing.assert_close(short, model(batch.features_BSF, batch.lengths_B3, whole)[:, :, : steps + 1])


def test_each_pathway_has_its_own_linear(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, [[2, 2, 2]])
    before = model.context(batch.features_BSF, batch.lengths_B3).sets[0].key_BGSd
    for pathway in range(3):
        changed = make_model()
        with torch.no_grad():
            changed.context.pathways[pathway].weight += 1
        differs = (changed.context(batch.features_BSF, batch.lengths_B3).sets[0].key_BGSd != before).any(-1).any(1)[0]
        assert differs.tolist() == [position // 2 == pathway for position in range(6)]


@pytest.mark.parametrize("filler", [float("nan"), float("inf"), 1e30])
def test_what_stands_in_the_padding_changes_nothing(make_model: MakeModel, make_batch: MakeBatch, filler: float) -> None:
    model = make_model(s_kv=2)
    batch = make_batch(model.config, RAGGED)
    paths = prefixes(4, 2, 2, 16)
    padded = F.pad(batch.features_BSF, (0, 0, 0, 3)).clone()
    for row, lengths in enumerate(batch.lengths_B3):
        padded[row, int(lengths.sum()) :] = filler
    clean = F.pad(batch.features_BSF, (0, 0, 0, 3))
    with torch.no_grad():
        assert torch.equal(model(padded, batch.lengths_B3, paths), model(clean, batch.lengths_B3, paths))


def test_a_longer_padding_changes_nothing(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    paths = prefixes(4, 2, 2, 16)
    with torch.no_grad():
        longer = model(F.pad(batch.features_BSF, (0, 0, 0, 60)), batch.lengths_B3, paths)
        torch.testing.assert_close(longer, model(batch.features_BSF, batch.lengths_B3, paths), rtol=1e-5, atol=1e-6)


def test_an_empty_context_gives_attention_zero(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, [[0, 0, 0], [1, 1, 1]])
    paths = prefixes(2, 2, 2, 16)
    with torch.no_grad():
        logits = model(batch.features_BSF, batch.lengths_B3, paths)
        assert torch.isfinite(logits).all()
        for block in model.blocks:
            block.cross_attention.o.weight.zero_()  # without cross attention the context counts for nothing
        torch.testing.assert_close(logits[0], model(batch.features_BSF, batch.lengths_B3, paths)[0])


def test_requests_do_not_see_their_neighbors(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    paths = prefixes(4, 2, 2, 16)
    with torch.no_grad():
        together = model(batch.features_BSF, batch.lengths_B3, paths)
        for row, lengths in enumerate(batch.lengths_B3):
            own = model(batch.features_BSF[row : row + 1, : int(lengths.sum())], lengths[None], paths[row : row + 1])
            torch.testing.assert_close(together[row], own[0], rtol=1e-5, atol=1e-6)


def test_a_request_full_of_nan_leaves_its_neighbors_alone(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    paths = prefixes(4, 2, 2, 16)
    with torch.no_grad():
        clean = model(batch.features_BSF, batch.lengths_B3, paths)
        batch.features_BSF[2, : int(batch.lengths_B3[2].sum())] = float("nan")
        dirty = model(batch.features_BSF, batch.lengths_B3, paths)
    assert dirty[2].isnan().all()
    others = [0, 1, 3]
    torch.testing.assert_close(dirty[others], clean[others], rtol=1e-5, atol=1e-6)


def experts_of(model: OneRec) -> MixtureOfExperts:
    return next(module for module in model.modules() if isinstance(module, MixtureOfExperts))


def test_equal_router_scores_go_to_the_lower_expert(make_model: MakeModel) -> None:
    moe = experts_of(make_model())
    with torch.no_grad():
        moe.router.weight.zero_()
        moe.selection_bias.zero_()
        index, weight = moe.route(torch.randn(5, 32, generator=torch.Generator().manual_seed(0)))
    assert index.tolist() == [[0, 1]] * 5
    assert weight.tolist() == [[0.5, 0.5]] * 5


def test_the_selection_bias_selects_and_does_not_weigh(make_model: MakeModel) -> None:
    moe = experts_of(make_model())
    rows = torch.randn(7, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        moe.selection_bias.copy_(torch.tensor([0.0, 0.0, 5.0, 5.0]))
        index, weight = moe.route(rows)
    assert {tuple(sorted(pair)) for pair in index.tolist()} == {(2, 3)}
    score = torch.sigmoid(rows @ moe.router.weight.T).gather(1, index)
    torch.testing.assert_close(weight, score / score.sum(1, keepdim=True))


def test_selected_tokens_are_counted(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model()
    batch = make_batch(model.config, RAGGED)
    with torch.no_grad():
        model(batch.features_BSF, batch.lengths_B3, prefixes(4, 5, 2, 16))
    selected = experts_of(model).last_selected
    assert selected is not None
    assert (len(selected), int(selected.sum())) == (4, 4 * 5 * 3 * 2)


def test_calibrating_shows_every_expert_every_token_and_changes_no_output(make_model: MakeModel) -> None:
    moe = experts_of(make_model())
    rows = torch.randn(9, 32, generator=torch.Generator().manual_seed(0))
    seen: list[int] = []
    for expert in moe.experts:
        expert.register_forward_hook(lambda module, inputs, output: seen.append(len(inputs[0])))
    with torch.no_grad():
        ordinary = moe(rows)
        assert sum(seen) == 9 * 2
        seen.clear()
        moe.calibrating = True
        torch.testing.assert_close(moe(rows), ordinary)
    assert seen == [9] * 4


def test_an_expert_that_overflows_disturbs_only_its_own_tokens(make_model: MakeModel) -> None:
    moe = experts_of(make_model())
    rows = torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        clean = moe(rows)
        chosen = (moe.route(rows)[0] == 1).any(1)
        moe.experts[1].down.weight.fill_(float("inf"))
        for moe.calibrating in (False, True):
            dirty = moe(rows)
            assert torch.isfinite(dirty[~chosen]).all()
            torch.testing.assert_close(dirty[~chosen], clean[~chosen])
    assert 0 < int(chosen.sum()) < 40


def test_a_nan_token_selects_experts_that_exist(make_model: MakeModel) -> None:
    moe = experts_of(make_model())
    index, _ = moe.route(torch.full((2, 32), float("nan")))
    assert int(index.min()) >= 0
    assert int(index.max()) < 4


def test_a_model_without_shared_experts(make_model: MakeModel, make_batch: MakeBatch) -> None:
    model = make_model(moe={"experts": 3, "top_k": 1, "hidden": 8, "shared": 0, "dense_layers": 0})
    assert_is_the_restated_model(model, make_batch(model.config, RAGGED))
