"""What a trace says is remembered for the models that say the same, and for no other."""

from __future__ import annotations

from onerec_trt.export.serving import ScoringModel, ServingModel
from onerec_trt.export.trace import SCORING_FILE, SERVING_FILE, traced_structures
from onerec_trt.models.config import parse_config

# 48 values of the position embedding: few enough to be folded into the graph.
TINY = {"d_model": 16, "n_layers": 1, "n_heads": 1, "d_head": 16, "embed_dim": 4, "codebook": 8, "ffn_hidden": 16}


def test_models_that_differ_in_what_is_folded_have_their_own(make_model, make_packed):
    models = [ServingModel(make_packed(make_model(parse_config(TINY), seed=seed), "fp16"), (2, 2, 2)).eval() for seed in (0, 0, 1)]
    first, equal, other = (traced_structures(each, ScoringModel(each.decoder, 2).eval()) for each in models)
    assert equal is first
    assert other != first


def test_models_of_other_beams_have_their_own_whose_steps_are_alike_in_both_graphs(make_model, make_packed):
    packed = make_packed(make_model(parse_config(TINY)), "fp16")
    narrow, wide = (ServingModel(packed, beam).eval() for beam in ((2, 2, 8), (2, 4, 8)))
    one = traced_structures(narrow, ScoringModel(narrow.decoder, 8).eval())
    other = traced_structures(wide, ScoringModel(wide.decoder, 8).eval())
    assert other != one
    assert other[SERVING_FILE].bodies == other[SCORING_FILE].bodies  # although rows differ: 2 and 4 beams in one, 8 paths in the other
    assert "step2.blocks.0.cross.q" in other[SERVING_FILE].bodies
