"""The registry holds every operator of the folder, each typed, tested and complete in the file it travels in."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from pathlib import Path

import onerec_trt.operators
import onnx
import pytest
from onerec_trt.operators.moe_experts_norm import PAIRS
from onerec_trt.operators.operator import DETAIL, DOMAIN, Operator
from onerec_trt.operators.registry import OPERATORS, functions_of, opset_imports

MODULES = {
    module.name: importlib.import_module(f"onerec_trt.operators.{module.name}")
    for module in pkgutil.iter_modules(onerec_trt.operators.__path__)
    if not module.ispkg
}


def defined_operators():
    """Operators by the file that defines their ONNX function; other files may import them."""
    return {
        operator.name: name
        for name, module in MODULES.items()
        for operator in vars(module).values()
        if isinstance(operator, Operator) and operator.reference.__module__ == module.__name__
    }


def test_every_operator_of_the_folder_is_registered_and_none_else():
    assert set(defined_operators()) == set(OPERATORS)


def test_every_operator_has_a_test_file():
    tests = {path.stem.removeprefix("test_") for path in Path(__file__).parent.glob("test_*.py")}
    assert set(defined_operators().values()) <= tests


@pytest.mark.parametrize("name", OPERATORS)
def test_every_operator_is_tested_by_name(name):
    texts = [path.read_text() for path in Path(__file__).parent.glob("test_*.py") if path.name != Path(__file__).name]
    assert any(f'"{name}"' in text for text in texts)


def parameters_of(operator):
    """Of the reference; one that hands all it is given to those of its parts has theirs, without what is handed on between them."""
    if operator.name not in PAIRS:
        return list(inspect.signature(operator.reference).parameters.values())
    experts, norm = (parameters_of(part) for part in (PAIRS[operator.name].experts, PAIRS[operator.name].norm))
    return [*experts, *norm[1:]]


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_function_and_reference_have_the_same_inputs_and_attributes(operator):
    parameters = parameters_of(operator)
    proto = operator.function.to_function_proto()
    assert len(proto.input) == sum(p.kind is p.POSITIONAL_OR_KEYWORD for p in parameters)
    attributes = {*proto.attribute, *(attribute.name for attribute in proto.attribute_proto)}
    assert attributes == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_reference_is_typed(operator):
    signature = inspect.signature(operator.reference)
    kinds = [signature.return_annotation, *(p.annotation for p in signature.parameters.values())]
    assert inspect.Signature.empty not in kinds


@pytest.mark.parametrize("operator", OPERATORS.values(), ids=OPERATORS)
def test_helpers_are_all_and_only_what_the_function_calls(operator):
    protos = {(proto.domain, proto.name): proto for proto in functions_of([operator])}
    called, open_calls = set(), [(DOMAIN, operator.name)]
    while open_calls:
        called.add(key := open_calls.pop())
        open_calls += [(node.domain, node.op_type) for node in protos[key].node if node.domain in (DOMAIN, DETAIL.domain)]
    assert called == set(protos)


def test_functions_come_once_and_in_a_stable_order():
    names = [(proto.domain, proto.name) for proto in functions_of(OPERATORS.values())]
    assert names == sorted(set(names))
    assert names == [(proto.domain, proto.name) for proto in functions_of(reversed(OPERATORS.values()))]


def test_every_function_imports_the_opsets_of_its_file():
    known = {(opset.domain, opset.version) for opset in opset_imports()}
    for proto in functions_of(OPERATORS.values()):
        assert {(opset.domain, opset.version) for opset in proto.opset_import} <= known
        onnx.checker.check_function(proto, _context())


def _context():
    context = onnx.checker.C.CheckerContext()
    context.ir_version = 10
    context.opset_imports = {opset.domain: opset.version for opset in opset_imports()}
    return context
