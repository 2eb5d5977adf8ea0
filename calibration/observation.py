"""Watches a model while calibration requests run through it: activations, and tokens per expert.

Every expert sees every token meanwhile. The gated output stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ..models.onerec import Block, MixtureOfExperts
from .statistics import SAMPLE_VALUES, TensorStatistics
from .targets import Target


class Observation:
    """What was seen: statistics by tensor name, and naturally routed tokens by MoE module name.

    Names of tensors: `<group>.input` for what the linears of a group read, `<linear>.output`, `<block>.output`.

    Args:
        sample_values: Values kept of each tensor.
    """

    def __init__(self, sample_values: int = SAMPLE_VALUES) -> None:
        self.sample_values = sample_values
        self.activations: dict[str, TensorStatistics] = {}
        self.routed: dict[str, Tensor] = {}

    def see(self, name: str, x: Tensor) -> None:
        self.activations.setdefault(name, TensorStatistics(name, self.sample_values)).add(x)

    def count(self, name: str, selected_E: Tensor) -> None:
        self.routed[name] = self.routed[name] + selected_E if name in self.routed else selected_E.clone()


@contextmanager
def observing(model: nn.Module, targets: Sequence[Target], observation: Observation) -> Iterator[None]:
    """Let every expert see every token and record what passes, while the block runs."""
    first_of_group = {target.name: target.group for target in reversed(_first_of_each_group(targets))}
    handles = []
    try:
        for name, module in model.named_modules():
            if name in first_of_group:
                handles.append(module.register_forward_pre_hook(_see_input(observation, f"{first_of_group[name]}.input")))
            if isinstance(module, nn.Linear | Block):
                handles.append(module.register_forward_hook(_see_output(observation, f"{name}.output")))
            if isinstance(module, MixtureOfExperts):
                handles.append(module.register_forward_hook(_count(observation, name)))
        with flooding(model):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def flooding(model: nn.Module) -> Iterator[None]:
    """Let every expert see every token while the block runs."""
    flooded = [module for module in model.modules() if isinstance(module, MixtureOfExperts)]
    try:
        for moe in flooded:
            moe.calibrating = True
        yield
    finally:
        for moe in flooded:
            moe.calibrating = False


def _first_of_each_group(targets: Sequence[Target]) -> list[Target]:
    """Linears of a group read the same tensor, so watching one of them is enough."""
    first: dict[str, Target] = {}
    for target in targets:
        first.setdefault(target.group, target)
    return list(first.values())


def _see_input(observation: Observation, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    return lambda _, inputs: observation.see(name, inputs[0])


def _see_output(observation: Observation, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    return lambda _, __, output: observation.see(name, output)


def _count(observation: Observation, name: str) -> Callable[[nn.Module, tuple[Any, ...], Tensor], None]:
    def hook(module: nn.Module, _: tuple[Any, ...], __: Tensor) -> None:
        assert isinstance(module, MixtureOfExperts)
        assert module.last_selected is not None
        observation.count(name, module.last_selected)

    return hook
