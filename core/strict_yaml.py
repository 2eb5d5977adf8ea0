"""YAML that decides nothing silently: equal keys are an error, and a number is written as it is read.

YAML 1.1 reads `yes` as true, `010` as 8, `1:30` as 90 and `1_000` as 1000; of two equal keys PyYAML keeps the last.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from .errors import OnerecTrtError
from .text_files import read_text

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")  # a float of YAML 1.2 that YAML 1.1 takes for text
_BOOLEANS = {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_TIMESTAMP = "tag:yaml.org,2002:timestamp"


def read_yaml(path: Path, *, name: str, error: type[OnerecTrtError], missing: str, malformed: str = "") -> Any:
    """The one document of a YAML file in UTF-8.

    Args:
        path: The file.
        name: What messages call it, such as "recipe".
        error: The typed error.
        missing: What to do where the file is missing.
        malformed: What to do where it is no such YAML.

    Raises:
        OnerecTrtError: Of the type `error`: the file cannot be read, is no YAML, repeats a key, or has a value of two meanings.
    """
    text = read_text(path, name=name, error=error, hint=missing)
    try:
        return yaml.load(text, _StrictLoader)  # derived from SafeLoader
    except yaml.MarkedYAMLError as problem:
        line = "" if problem.problem_mark is None else f", line {problem.problem_mark.line + 1}"
        hint = malformed or "correct the file"
        raise error(f"the {name} is not valid YAML{line}: {problem.problem or problem.context}", where=str(path), hint=hint) from None
    except (yaml.YAMLError, ValueError) as problem:
        raise error(f"the {name} is not valid YAML: {problem}", where=str(path), hint=malformed or "correct the file") from None
    except RecursionError:
        raise error(f"the {name} is nested too deeply", where=str(path), hint=malformed or "correct the file") from None


class _StrictLoader(yaml.SafeLoader):
    """A loader of plain data that refuses what can be read in two ways."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        lines: dict[tuple[str, str], int] = {}
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                line, identity = key.start_mark.line + 1, (key.tag, key.value)
                if identity in lines:
                    raise _problem(key, f"the key '{key.value}' occurs twice, in line {lines[identity]} and in line {line}")
                lines[identity] = line
        return node

    def construct_integer(self, node: yaml.ScalarNode) -> int:
        return int(_one_reading(node, _INTEGER, "an integer", "digits alone, such as 64"))

    def construct_float(self, node: yaml.ScalarNode) -> float:
        return float(_one_reading(node, _FLOAT, "a number", "a form such as 0.5 or 1e-3").replace(".inf", "inf").replace(".nan", "nan"))

    def construct_boolean(self, node: yaml.ScalarNode) -> bool:
        if node.value not in _BOOLEANS:
            what = f"'{node.value}' is a truth value to some readers and text to others: write true or false, or use quotes for text"
            raise _problem(node, what)
        return _BOOLEANS[node.value]


def _one_reading(node: yaml.ScalarNode, form: re.Pattern[str], kind: str, instead: str) -> str:
    """The text of a number that every reader takes for the same."""
    if not form.fullmatch(node.value):
        what = f"'{node.value}' is {kind} to some readers and another to others: write {instead}, or use quotes for text"
        raise _problem(node, what)
    return str(node.value).lower()


def _problem(node: yaml.Node, what: str) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, what, node.start_mark)


_RESOLVERS = {
    first: [(tag, form) for tag, form in resolvers if tag != _TIMESTAMP]  # a date is text
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_StrictLoader.yaml_implicit_resolvers = _RESOLVERS
_StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
_StrictLoader.add_constructor("tag:yaml.org,2002:int", _StrictLoader.construct_integer)
_StrictLoader.add_constructor("tag:yaml.org,2002:float", _StrictLoader.construct_float)
_StrictLoader.add_constructor("tag:yaml.org,2002:bool", _StrictLoader.construct_boolean)
