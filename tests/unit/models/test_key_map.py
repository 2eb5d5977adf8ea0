"""Key maps: integers and rests are carried over, and what does not fit is named."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from onerec_trt.core.errors import CheckpointError
from onerec_trt.models.key_map import KeyMap, read_key_map


def key_map(tmp_path: Path, text: str) -> KeyMap:
    path = tmp_path / "map.yaml"
    path.write_text(text)
    return read_key_map(path)


def test_integers_are_carried_over_in_any_order(tmp_path: Path) -> None:
    mapping = key_map(tmp_path, "blocks.{layer}.ffn.experts.{expert}.up.weight: moe.e{expert}.of.{layer}/w3\nbos: start")
    assert mapping.apply(["blocks.12.ffn.experts.3.up.weight", "bos"]) == {
        "blocks.12.ffn.experts.3.up.weight": "moe.e3.of.12/w3",
        "bos": "start",
    }


def test_the_rest_of_a_name_is_carried_over(tmp_path: Path) -> None:
    mapping = key_map(tmp_path, '"{...}": module.{...}')
    assert mapping.apply(["heads.0.weight"]) == {"heads.0.weight": "module.heads.0.weight"}


def test_the_first_pattern_that_fits_counts(tmp_path: Path) -> None:
    mapping = key_map(tmp_path, 'heads.{level}.weight: lm_head.{level}\n"{...}": model.{...}')
    assert mapping.apply(["heads.2.weight", "heads.2.bias"]) == {"heads.2.weight": "lm_head.2", "heads.2.bias": "model.heads.2.bias"}


def test_a_placeholder_takes_integers_only_and_dots_are_dots(tmp_path: Path) -> None:
    mapping = key_map(tmp_path, "blocks.{layer}.q: q{layer}")
    for name in ("blocks.x.q", "blocks..q", "blocks.1xq", "blocks.1.q.weight", "a.blocks.1.q"):
        with pytest.raises(CheckpointError, match="no pattern for"):
            mapping.apply([name])


@given(st.lists(st.integers(0, 999), min_size=1, max_size=20, unique=True))
def test_every_integer_goes_its_own_way(layers: list[int]) -> None:
    names = KeyMap((("b.{layer}.w", "x{layer}y"),)).apply([f"b.{layer}.w" for layer in layers])
    assert list(names.values()) == [f"x{layer}y" for layer in layers]


def test_ignored_names(tmp_path: Path) -> None:
    mapping = key_map(tmp_path, 'a: b\nignore: ["item_tower.{...}", "step", "ema.{n}"]')
    assert all(mapping.ignores(name) for name in ("item_tower.x.y", "step", "ema.3"))
    assert not any(mapping.ignores(name) for name in ("ema.x", "steps", "b"))


@pytest.mark.parametrize(
    ("text", "names", "message"),
    [
        ("a: x", ["a", "b"], "no pattern for b"),
        ("a: x\nblocks.{n}.k: k{n}", ["a"], "blocks.{n}.k of the key map fits no tensor"),
        ('"{...}": m.{...}\na: x', ["a"], "the pattern a of the key map fits no tensor"),
        ("a: x\nb: x", ["a", "b"], "reads a and b from one tensor x"),
    ],
)
def test_a_map_that_does_not_fit_the_model(tmp_path: Path, text: str, names: list[str], message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        key_map(tmp_path, text).apply(names)
    assert caught.value.where == str(tmp_path / "map.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.{n}: b", "placeholders"),
        ("a.{n}: b.{m}", "placeholders"),
        ("a: b.{n}", "placeholders"),
        ("a.{n}.{n}: b.{n}", "placeholders"),
        ("a.{n: b.{n", "braces"),
        ("a.{}: b.{}", "braces"),
        ("a: 3", "maps names to names"),
        ("3: a", "maps names to names"),
        ("a: b\nignore: c", "list of names"),
        ("a: b\nignore: [3]", "list of names"),
        ('a: b\nignore: ["{"]', "braces"),
        ("- a", "mapping"),
        ("", "mapping"),
        ("a: [", "not valid YAML"),
        ("a: x\nb: y\na: z", "'a' occurs twice, in line 1 and in line 3"),
        ("a: no", "write true or false, or use quotes"),
    ],
)
def test_a_malformed_file(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        key_map(tmp_path, text)
    assert caught.value.where == str(tmp_path / "map.yaml")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not found"):
        read_key_map(tmp_path / "absent.yaml")
