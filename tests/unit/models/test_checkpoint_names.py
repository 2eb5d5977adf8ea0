"""Checkpoints with names of the user's own, read through a key map."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from onerec_trt.core.errors import CheckpointError
from onerec_trt.models.checkpoint import WEIGHTS_NAME, open_checkpoint
from onerec_trt.models.onerec import OneRec
from safetensors.torch import load_file, save_file

from .same_weights import assert_same_weights

MakeModel = Callable[..., OneRec]
OWN_NAMES = """
blocks.{layer}.ffn.experts.{expert}.{...}: moe.{expert}.layer{layer}.{...}
token_embedding.weight: wte
"{...}": onerec.{...}
ignore: ["optimizer.{...}"]
"""


def own_name(name: str) -> str:
    parts = name.split(".")
    if ".experts." in name:
        return f"moe.{parts[4]}.layer{parts[1]}.{'.'.join(parts[5:])}"
    return "wte" if name == "token_embedding.weight" else f"onerec.{name}"


def test_a_checkpoint_with_names_of_its_own(folder: Path, make_model: MakeModel) -> None:
    tensors = {own_name(name): value for name, value in load_file(folder / WEIGHTS_NAME).items()}
    save_file(tensors | {"optimizer.step": torch.zeros(1)}, folder / WEIGHTS_NAME)
    (folder / "map.yaml").write_text(OWN_NAMES)
    assert_same_weights(open_checkpoint(folder, folder / "map.yaml").load_model(), make_model())
    with pytest.raises(CheckpointError, match="missing"):
        open_checkpoint(folder)


def test_errors_give_both_names(folder: Path) -> None:
    tensors = {own_name(name): value for name, value in load_file(folder / WEIGHTS_NAME).items()}
    tensors["wte"][0, 0] = float("nan")
    tensors["more"] = torch.zeros(1)
    save_file(tensors, folder / WEIGHTS_NAME)
    (folder / "map.yaml").write_text(OWN_NAMES)
    with pytest.raises(CheckpointError, match="1 unexpected: more") as caught:
        open_checkpoint(folder, folder / "map.yaml")
    assert "key map" in caught.value.hint
    del tensors["more"]
    save_file(tensors, folder / WEIGHTS_NAME)
    with pytest.raises(CheckpointError, match=r"token_embedding\.weight \(wte in the file\)"):
        open_checkpoint(folder, folder / "map.yaml").load_model()
