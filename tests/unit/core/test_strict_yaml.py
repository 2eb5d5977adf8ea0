"""YAML that decides nothing silently: repeated keys, and spellings that readers take for different values."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from onerec_trt.core.errors import RecipeError
from onerec_trt.core.strict_yaml import read_yaml


def read(folder: Path, text: str | bytes) -> Any:
    path = folder / "r.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_yaml(path, name="recipe", error=RecipeError, missing="give a file")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("64", 64),
        ("-3", -3),
        ("+12", 12),
        ("0", 0),
        ("0.5", 0.5),
        ("1.", 1.0),
        ("1e-3", 1e-3),
        ("2.5E+4", 2.5e4),
        (".inf", math.inf),
        ("-.inf", -math.inf),
        ("true", True),
        ("FALSE", False),
        ("~", None),
        ("fp16", "fp16"),
        ('"010"', "010"),
        ("'yes'", "yes"),
        ("2026-01-02", "2026-01-02"),
        ("checkpoint-检查点", "checkpoint-检查点"),
        ("[1, 2]", [1, 2]),
    ],
)
def test_a_plain_value_is_what_it_looks_like(tmp_path: Path, text: str, value: Any) -> None:
    found = read(tmp_path, f"key: {text}")["key"]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    "text",
    [
        *("yes", "no", "on", "off", "Yes", "NO", "On"),
        *("010", "0x10", "0b101", "1_000", "1:30", "12:30:45", "-0x1F", "!!int 010", "!!int 1:30"),
        *("1_0.5", "1:30.5", "1_000.0", "!!bool yes"),
    ],
)
def test_a_spelling_of_two_values_is_refused_with_its_line(tmp_path: Path, text: str) -> None:
    with pytest.raises(RecipeError, match=r"line 2.*to some readers") as caught:
        read(tmp_path, f"name: a\nkey: {text}\n")
    assert text.split()[-1] in caught.value.what


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", (1, 3)),
        ("a: 1\n'a': 1\n", (1, 2)),
        ("build:\n  target: x\nname: n\nbuild:\n  plugins: true\n", (1, 4)),
        ("build:\n  target: x\n  target: y\n", (2, 3)),
        ("list:\n- {a: 1, a: 2}\n", (2, 2)),
        ("? a\n: 1\n? a\n: 2\n", (1, 3)),
    ],
)
def test_a_repeated_key_is_refused_with_both_lines(tmp_path: Path, text: str, lines: tuple[int, int]) -> None:
    with pytest.raises(RecipeError, match=f"occurs twice, in line {lines[0]} and in line {lines[1]}"):
        read(tmp_path, text)


def test_equal_keys_of_different_mappings_are_none(tmp_path: Path) -> None:
    assert read(tmp_path, "- {a: 1}\n- {a: 2}\n") == [{"a": 1}, {"a": 2}]
    assert read(tmp_path, "base: &b {a: 1, c: 3}\nown: {<<: *b, a: 2}\n")["own"] == {"a": 2, "c": 3}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [1", "not valid YAML"),
        ("a: 1\n---\nb: 2\n", "not valid YAML"),
        ("\x00", "not valid YAML"),
        ("a: !!python/object:os.system x", "not valid YAML"),
        ("[" * 100_000, "nested too deeply"),
        ("a: " + "9" * 10_000, "not valid YAML"),
        ("? [a]\n: 1\n", "not valid YAML"),
        (b"name: caf\xe9\n", "not UTF-8: byte 9 is 0xe9"),
        ("a: 1".encode("utf-16"), "not UTF-8"),
    ],
)
def test_what_is_no_yaml_is_a_typed_error(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        read(tmp_path, text)
    assert caught.value.where == str(tmp_path / "r.yaml")
    assert caught.value.hint


def test_a_byte_order_mark_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xef\xbb\xbfname: a\n") == {"name": "a"}
