"""Imports an existing ModelOpt calibration: the amax values in a saved state dict, without unpickling anything.

Keys are ModelOpt's: `<linear>.weight_quantizer._amax` and, with static activations, `<linear>.input_quantizer._amax`.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..core.errors import CalibrationError
from ..core.precision import Granularity
from .ptq import check_amax
from .quantize import Amax, TensorSource
from .targets import Target

_AMAX = "_quantizer._amax"
_SHOWN = 8  # names listed in an error
_HOW = "save it with safetensors.torch.save_file(model.state_dict(), 'state.safetensors') after mtq.quantize"


class SavedState:
    """Tensors of a `.safetensors` file, or of a `.pth` or `.pt` that holds nothing but tensors.

    Raises:
        CalibrationError: The file is missing, of another kind, damaged, or would run code when read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise CalibrationError("saved ModelOpt state not found", where=str(path), hint=_HOW)
        if path.suffix == ".safetensors":
            self._tensors: Mapping[str, Tensor] | _LazyFile = _LazyFile(path)
        elif path.suffix in (".pth", ".pt"):
            self._tensors = _load_tensors_only(path)
        else:
            raise CalibrationError(f"a saved state is .safetensors, .pth or .pt, not '{path.suffix}'", where=str(path), hint=_HOW)

    @property
    def names(self) -> set[str]:
        return set(self._tensors.keys())

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name].float()

    def amax(self, targets: Sequence[Target], modules: Mapping[str, str]) -> dict[str, Amax]:
        """The amax of every target.

        Args:
            targets: Quantized linears of the recipe.
            modules: Their names to those in this file.

        Raises:
            CalibrationError: The state quantizes other layers or in another way than the recipe, or an amax is missing or NaN.
        """
        self._check_names(targets, modules)
        return {target.name: self._amax_of(target, modules[target.name]) for target in targets}

    def check_weights(self, source: TensorSource, targets: Sequence[Target], modules: Mapping[str, str]) -> None:
        """Where the state also holds weights, they must be the checkpoint's, up to the precision they are stored in.

        Raises:
            CalibrationError: They are another checkpoint's.
        """
        names = self.names
        for target in targets:
            name = f"{modules[target.name]}.weight"
            if name not in names:
                continue
            stored = self._tensors[name]
            if not torch.equal(stored, source.tensor(f"{target.name}.weight").to(stored.dtype).cpu()):
                hint = "give the checkpoint this state was calibrated from, or calibrate again"
                raise CalibrationError(
                    "the saved state belongs to another checkpoint: weights differ", where=f"{self.path}: {name}", hint=hint
                )

    def _check_names(self, targets: Sequence[Target], modules: Mapping[str, str]) -> None:
        expected = {f"{modules[target.name]}.weight{_AMAX}" for target in targets}
        expected |= {f"{modules[t.name]}.input{_AMAX}" for t in targets if t.granularity is Granularity.TENSOR}
        quantizer_state = {name for name in self.names if "_quantizer." in name}
        missing, extra = sorted(expected - quantizer_state), sorted(quantizer_state - expected)
        problems = [
            f"{len(names)} {word}: {', '.join(names[:_SHOWN])}{' ...' if len(names) > _SHOWN else ''}"
            for names, word in ((missing, "missing"), (extra, "not part of the recipe"))
            if names
        ]
        if problems:
            raise CalibrationError(
                "the saved state quantizes other layers, or in another way, than the recipe",
                where=f"{self.path}: {'; '.join(problems)}",
                hint="choose the precision the state was made for; docs/formats.md has the configuration for states of ModelOpt's presets",
            )

    def _amax_of(self, target: Target, module: str) -> Amax:
        weight = check_amax(target, "weight", self.tensor(f"{module}.weight{_AMAX}"))
        if target.granularity is not Granularity.TENSOR:
            return Amax(self._as_shape(target, "weight", weight, target.weight_scale_shape))
        static = check_amax(target, "input", self.tensor(f"{module}.input{_AMAX}"))
        return Amax(self._as_shape(target, "weight", weight, target.weight_scale_shape), float(self._as_shape(target, "input", static, ())))

    def _as_shape(self, target: Target, role: str, amax: Tensor, shape: tuple[int, ...]) -> Tensor:
        """ModelOpt keeps reduced axes as 1; one amax for a whole weight (its FP8 default) serves as that of every row."""
        if amax.numel() == 1 and target.granularity is not Granularity.BLOCK:
            return amax.reshape(()).expand(shape).clone()
        if tuple(size for size in amax.shape if size != 1) != tuple(size for size in shape if size != 1):
            raise CalibrationError(
                f"the amax has shape {list(amax.shape)}, the recipe needs {list(shape)}",
                where=f"{self.path}: {target.name}.{role}_quantizer",
                hint="choose the precision the state was made for",
            )
        return amax.reshape(shape)


class _LazyFile:
    """A safetensors file whose tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        try:
            self._file: Any = safe_open(path, framework="pt")
        except (SafetensorError, OSError) as error:
            raise CalibrationError(f"not a readable safetensors file: {error}", where=str(path), hint=_HOW) from None

    def keys(self) -> list[str]:
        return list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


def _load_tensors_only(path: Path) -> dict[str, Tensor]:
    try:
        value = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        what = "the file holds other objects than tensors, or is damaged; such objects could run code, so they are refused"
        raise CalibrationError(what, where=str(path), hint=_HOW) from None
    except Exception as error:  # of a damaged file PyTorch's reader raises what it likes, such as struct.error or an AssertionError
        raise CalibrationError(f"not a readable torch file: {error}", where=str(path), hint=_HOW) from error
    if isinstance(value, dict) and isinstance(value.get("model_state_dict"), dict):  # the layout of mto.save
        value = value["model_state_dict"]
    if not isinstance(value, dict) or not all(isinstance(name, str) and isinstance(tensor, Tensor) for name, tensor in value.items()):
        raise CalibrationError("the file is not a state dict of tensors", where=str(path), hint=_HOW)
    return value
