"""Reading a plan's program: FP8 operations by ONNX node, weights by type, unknown where there is no text."""

from __future__ import annotations

from pathlib import Path

from onerec_trt.builders.program_text import read_program


def _tensor(name: str, kind: str, payload: int = 0, offset: int = 0) -> str:
    constant = f"const_payload_size={payload} " if payload else ""
    place = f'name="{name}" offset={offset} rank0=0 region=r'
    return f"  tensor={{ alignment=128 {constant}dims={{ 64 64 }} {place} strides={{ 64 1 }} type={kind} }}\n"


def _operation(name: str, operands: tuple[str, ...], layers: tuple[str, ...]) -> str:
    inputs = "".join(f'"{operand}" ' for operand in operands)
    sources = "\x1f".join(f"[ONNX Layer: {layer}]" for layer in layers)
    return f'  fully_connected={{ name="{name}" output={{"y" }} input={{{inputs}}} stream=0 source=cask layers="{sources}" }}\n'


def _plan(path: Path, *programs: tuple[str, str]) -> Path:
    texts = [f"header {{\n  version = 5\n}}\ndescriptors {{\n{tensors}}}\nmain {{\n label bb1: \n{body}}}\n" for tensors, body in programs]
    path.write_bytes(b"vtrt\0\xff\xfe" + b"\0".join(b"\x07NLYM\0" + text.encode() for text in texts) + b"\0\x80 rest")
    return path


def test_only_operations_with_two_fp8_operands_count(tmp_path: Path) -> None:
    tensors = _tensor("x", "fp8_e4m3") + _tensor("w", "fp8_e4m3", 4096) + _tensor("h", "half") + _tensor("{odd} [name]", "fp8_e4m3")
    body = (
        _operation("first", ("x", "w", "h"), ("first", "its_dequantize"))
        + _operation("second", ("h", "w"), ("second",))
        + _operation("third", ("x", "{odd} [name]"), ())
        + '  copy={ name="c" output={"y" } input={"x" }  stream=0 }\n'
        + _operation("last", ("h", "h"), ("last",))
    )
    facts = read_program(_plan(tmp_path / "a.plan", (tensors, body)))
    assert facts is not None
    assert facts.fp8_layers == {"first", "its_dequantize", "third"}
    assert facts.constant_bytes == {"fp8_e4m3": 4096}


def test_the_names_of_one_program_mean_nothing_in_another(tmp_path: Path) -> None:
    first = (_tensor("x", "fp8_e4m3") + _tensor("w", "fp8_e4m3", 100), _operation("a", ("x", "w"), ()))
    second = (_tensor("x", "half") + _tensor("w", "half", 7), _operation("b", ("x", "w"), ()))
    facts = read_program(_plan(tmp_path / "a.plan", first, second))
    assert facts is not None
    assert facts.fp8_layers == {"a"}
    assert facts.constant_bytes == {"fp8_e4m3": 100}


def test_a_weight_used_in_three_steps_counts_once(tmp_path: Path) -> None:
    tensors = "".join(_tensor(f"use_{i}", "fp8_e4m3", 100, offset=1) for i in range(3)) + _tensor("other", "fp8_e4m3", 50, offset=2)
    facts = read_program(_plan(tmp_path / "a.plan", (tensors, "")))
    assert facts is not None
    assert facts.constant_bytes == {"fp8_e4m3": 150}


def test_fp8_must_hold_in_every_profile(tmp_path: Path) -> None:
    tensors = _tensor("x", "fp8_e4m3") + _tensor("w", "fp8_e4m3", 100, offset=1) + _tensor("h", "half")
    first = (tensors, _operation("a", ("x", "w"), ()) + _operation("b", ("x", "w"), ()))
    second = (tensors, _operation("a [profile 1]", ("x", "w"), ()) + _operation("b [profile 1]", ("h", "w"), ()))
    facts = read_program(_plan(tmp_path / "a.plan", first, second))
    assert facts is not None
    assert facts.fp8_layers == {"a"}
    assert facts.constant_bytes == {"fp8_e4m3": 100}


def test_a_plan_without_text_is_unknown_not_zero(tmp_path: Path) -> None:
    path = tmp_path / "a.plan"
    path.write_bytes(b"vtrt\0 header of another kind \0" * 100)
    assert read_program(path) is None
