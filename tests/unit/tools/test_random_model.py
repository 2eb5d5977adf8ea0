"""A random model of a published size: a recipe can read its checkpoint and its requests, and equal seeds give equal files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from onerec_trt.core.artifacts import sha256
from onerec_trt.core.errors import RecipeError
from onerec_trt.models.beam_search import beam_search
from onerec_trt.models.checkpoint import open_checkpoint
from onerec_trt.models.config import parse_config
from onerec_trt.models.evaluation import hits
from onerec_trt.models.requests import Requests, read_requests
from onerec_trt.tools import random_model
from onerec_trt.tools.random_model import write_random_model

MOE = {"experts": 4, "top_k": 2, "hidden": 32, "dense_layers": 1}
SMALL = parse_config(
    {"d_model": 64, "n_layers": 3, "n_heads": 2, "d_head": 32, "embed_dim": 8, "codebook": 64, "ffn_hidden": 64, "moe": MOE}
)


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(random_model, "SIZES", {"tiny": SMALL})
    monkeypatch.setattr(random_model, "MAX_CONTEXT", 64)
    monkeypatch.setattr(random_model, "LONGEST", (2, 4, 8))
    monkeypatch.setattr(random_model, "HEADS", 2.0)  # of 64 tokens none would stand out
    write_random_model("tiny", tmp_path / "one", 40, layers=2)
    return tmp_path / "one"


def test_a_recipe_can_read_what_is_made(made: Path) -> None:
    checkpoint = open_checkpoint(made / "checkpoint")
    assert checkpoint.config == SMALL.with_changes(n_layers=2)
    model = checkpoint.load_model()
    requests = {
        name: read_requests(made / f"{name}.parquet", SMALL, max_context=64, need_targets=True) for name in ("calibration", "heldout")
    }
    assert [len(some) for some in requests.values()] == [40, 40]
    assert not set(requests["calibration"].ids) & set(requests["heldout"].ids)
    for some in requests.values():
        counts = np.diff(some.offsets)
        assert counts[0] == 64
        assert len(set(counts[1:].tolist())) > 5
    assert _hit(model, requests["heldout"]) > 100 * 8 / 64**3  # targets are the model's own, not any items


def test_equal_seeds_give_equal_files(made: Path, tmp_path: Path) -> None:
    write_random_model("tiny", tmp_path / "same", 40, layers=2)
    write_random_model("tiny", tmp_path / "other", 40, layers=2, seed=1)
    first, same, other = (sha256(folder / "checkpoint") for folder in (made, tmp_path / "same", tmp_path / "other"))
    assert first == same != other
    assert (
        sha256(made / "heldout.parquet") == sha256(tmp_path / "same" / "heldout.parquet") != sha256(tmp_path / "other" / "heldout.parquet")
    )


def test_nothing_is_replaced(made: Path) -> None:
    before = sha256(made)
    with pytest.raises(RecipeError, match=r"holds .*checkpoint, .*heldout.parquet already"):
        write_random_model("tiny", made, 40)
    assert sha256(made) == before


@pytest.mark.parametrize(("size", "layers", "said"), [("3B", 0, "no size '3B'"), ("tiny", 9, "tiny has 3 layers, not 9")])
def test_what_does_not_exist_is_refused(made: Path, tmp_path: Path, size: str, layers: int, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        write_random_model(size, tmp_path / "new", 4, layers)
    assert not (tmp_path / "new").exists()


def _hit(model: torch.nn.Module, requests: Requests) -> float:
    """Share of the targets among the eight best items."""
    batch = requests.batch(range(len(requests)))
    beams = beam_search(model, batch.features_BSF, batch.lengths_B3, (8, 8, 8))  # type: ignore[arg-type]
    assert requests.targets_n3 is not None
    return float(hits(beams.sids_BW3.numpy(), requests.targets_n3, 8).mean())
