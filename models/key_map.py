"""Mapping of the tensor names of users' own checkpoints to ours, as a YAML file.

    blocks.{layer}.cross_attention.q.weight: decoder.layers.{layer}.xattn.wq.weight
    heads.{...}: lm_heads.{...}
    ignore: ["item_tower.{...}"]

Keys are our names, values theirs. `{word}` stands for an integer, `{...}` for any text. The first key that
fits a name counts, and every name must fit one. `ignore` lists names of theirs that are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import CheckpointError
from ..core.strict_yaml import read_yaml

_PLACEHOLDER = re.compile(r"\{(\w+|\.\.\.)\}")
_HINT = "see docs/formats.md for the format of a key map"


@dataclass(frozen=True)
class KeyMap:
    """Patterns of our names with those of theirs, in order of the file, and patterns of theirs to leave out."""

    pairs: tuple[tuple[str, str], ...]
    ignored: tuple[str, ...] = ()
    where: str = "key map"

    def apply(self, ours: Iterable[str]) -> dict[str, str]:
        """Our names to theirs.

        Raises:
            CheckpointError: A name fits no pattern, a pattern fits no name, or two names are read from one tensor.
        """
        rules = [(ours_pattern, _regex(ours_pattern), theirs) for ours_pattern, theirs in self.pairs]
        names: dict[str, str] = {}
        used: set[str] = set()
        for name in ours:
            fits = next(((key, match, theirs) for key, regex, theirs in rules if (match := regex.fullmatch(name))), None)
            if fits is None:
                raise CheckpointError(f"the key map has no pattern for {name}", where=self.where, hint=_HINT)
            key, match, theirs = fits
            values = dict(zip(_placeholders(key), match.groups(), strict=True))
            names[name] = _PLACEHOLDER.sub(lambda found: values[found[1]], theirs)  # noqa: B023 - called at once
            used.add(key)
        self._check_use(names, [key for key, _ in self.pairs if key not in used])
        return names

    def ignores(self, theirs: str) -> bool:
        """Whether a name of theirs is to be left out."""
        return any(_regex(pattern).fullmatch(theirs) for pattern in self.ignored)

    def _check_use(self, names: dict[str, str], unused: list[str]) -> None:
        if unused:
            hint = "correct the name, or move the pattern above one that already covers its names"
            raise CheckpointError(f"the pattern {unused[0]} of the key map fits no tensor of the model", where=self.where, hint=hint)
        owner: dict[str, str] = {}
        for ours, theirs in names.items():
            if theirs in owner:
                raise CheckpointError(
                    f"the key map reads {owner[theirs]} and {ours} from one tensor {theirs}", where=self.where, hint=_HINT
                )
            owner[theirs] = ours


def read_key_map(path: Path) -> KeyMap:
    """Read a key map.

    Raises:
        CheckpointError: The file is missing, is no YAML mapping of names to names, or a pattern is malformed.
    """
    values = read_yaml(path, name="key map", error=CheckpointError, missing="give the path of a YAML file", malformed=_HINT)
    if not isinstance(values, dict):
        raise CheckpointError("a key map is a mapping of our names to theirs", where=str(path), hint=_HINT)
    ignored = values.pop("ignore", [])
    if not isinstance(ignored, list) or not all(isinstance(text, str) for text in [*ignored, *values, *values.values()]):
        raise CheckpointError("a key map maps names to names, and `ignore` is a list of names", where=str(path), hint=_HINT)
    for pattern in [*values, *values.values(), *ignored]:
        if set("{}") & set(_PLACEHOLDER.sub("", pattern)):
            raise CheckpointError(f"the braces in {pattern} are not a placeholder", where=str(path), hint=_HINT)
    for ours, theirs in values.items():
        mentioned = _placeholders(ours)
        if len(set(mentioned)) != len(mentioned) or sorted(mentioned) != sorted(_placeholders(theirs)):
            raise CheckpointError(f"the placeholders of {ours} and {theirs} differ", where=str(path), hint="use each once on either side")
    return KeyMap(tuple(values.items()), tuple(ignored), str(path))


def _placeholders(pattern: str) -> list[str]:
    return _PLACEHOLDER.findall(pattern)


def _regex(pattern: str) -> re.Pattern[str]:
    literals = _PLACEHOLDER.split(pattern)  # text, placeholder, text, placeholder, ..., text
    parts = [re.escape(part) if index % 2 == 0 else "(.+)" if part == "..." else r"(\d+)" for index, part in enumerate(literals)]
    return re.compile("".join(parts))
