"""The FP16 baseline of a checkpoint rounds what serving rounds, and nothing else."""

from __future__ import annotations

from collections.abc import Callable

import torch
from onerec_trt.core.recipe import Recipe
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.validation.fp16_source import Fp16Source


def test_router_and_selection_bias_stay_in_fp32(finished_recipe: Callable[[str], Recipe]) -> None:
    checkpoint = open_checkpoint(finished_recipe("fp16").checkpoint)
    source = Fp16Source(checkpoint)
    kept = {name for name in checkpoint.names if source.tensor(name).dtype == torch.float32}
    assert kept == {"blocks.1.ffn.router.weight", "blocks.1.ffn.selection_bias"}
    for name in set(checkpoint.names) - kept:
        torch.testing.assert_close(source.tensor(name), checkpoint.tensor(name).half(), rtol=0, atol=0)
