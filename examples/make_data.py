"""Writes what stands for your training and your logs: a checkpoint with tensor names of its own, calibration and held-out requests.

The weights are random, with large heads and small corrections, so that scores lie as far apart as those of a trained model.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from onerec_trt.models.beam_search import beam_search
from onerec_trt.models.config import parse_config
from onerec_trt.models.onerec import OneRec
from onerec_trt.models.requests import Requests, write_requests
from onerec_trt.models.synthetic import World, make_catalogue, make_requests
from safetensors.torch import save

WORLD = World(
    topics=8, items_per_topic=8, styles=2, codebook=32, embed_dim=8, favorites=4, static=(1, 2), short_term=(1, 3), long_term=(0, 4)
)
CONFIG = parse_config({"d_model": 64, "n_layers": 2, "n_heads": 2, "d_head": 32, "embed_dim": 8, "codebook": 32, "ffn_hidden": 64})
NAMES = (  # the names of the model, and those of this checkpoint
    (r"^blocks\.(\d+)\.cross_attention\.", r"decoder.layers.\1.xattn."),
    (r"^blocks\.(\d+)\.self_attention\.", r"decoder.layers.\1.attn."),
    (r"^blocks\.", "decoder.layers."),
    (r"^heads\.", "lm_heads."),
)


def make_model() -> OneRec:
    """A small model whose weights BF16 holds exactly."""
    torch.manual_seed(3)
    model = OneRec(CONFIG).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.startswith("heads."):
                weight *= 8
            elif name.endswith((".o.weight", ".down.weight")):
                weight *= 0.5
            weight.copy_(weight.bfloat16())
    return model


def write_checkpoint(model: OneRec, folder: Path) -> None:
    """`config.json` and one safetensors file, as a training framework might leave them."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(CONFIG.model_dump_json(), encoding="utf-8")
    tensors = {other_name(name): value.bfloat16().contiguous() for name, value in model.state_dict().items()}
    tensors["item_tower.weight"] = torch.zeros(4, 4, dtype=torch.bfloat16)  # of another part of the system
    (folder / "model.safetensors").write_bytes(save(tensors))  # not save_file: its files are readable by their owner alone


def other_name(name: str) -> str:
    """The checkpoint's name of a tensor."""
    for pattern, replacement in NAMES:
        name, found = re.subn(pattern, replacement, name)
        if found:
            break
    return name


def with_targets(requests: Requests, model: OneRec) -> Requests:
    """The requests with a next item each: one of those that the model itself finds likely."""
    batch = requests.batch(range(len(requests)))
    sids = beam_search(model, batch.features_BSF, batch.lengths_B3, (8, 16, 16)).sids_BW3.numpy()
    return replace(requests, targets_n3=np.stack([items[user % len(items)] for user, items in enumerate(sids)]))


def main(folder: Path) -> None:
    """Write everything into a new folder."""
    model, catalogue = make_model(), make_catalogue(WORLD, seed=1)
    write_checkpoint(model, folder / "checkpoint")
    write_requests(folder / "calibration.parquet", make_requests(catalogue, 32, seed=10))
    write_requests(folder / "heldout.parquet", with_targets(make_requests(catalogue, 64, seed=11, first_user=32), model))
    print(json.dumps({"wrote": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())}))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
