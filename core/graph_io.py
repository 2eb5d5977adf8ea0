"""The contract of a graph: its inputs and outputs with name, data type and axes, by the role each one plays.

Export writes it into `export.json` and into the ONNX file; the record of a plan carries it on. Whoever feeds or reads a graph
asks the contract for a role and spells no name of its own.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .dtypes import DTYPES, DType
from .errors import ArtifactError

METADATA_KEY = "onerec_trt.io"  # of the ONNX file's metadata

BATCH: Literal["batch"] = "batch"
CONTEXT: Literal["context"] = "context"
Axis: TypeAlias = Literal["batch", "context"] | int  # a number is a fixed size


class Role(StrEnum):
    """What a tensor is for. B requests, S tokens of context, F features of a token, W beams, V codebook, N semantic IDs, C classes."""

    CONTEXT_FEATURES = "context_features"  # [B, S, F]
    PATHWAY_LENGTHS = "pathway_lengths"  # [B, 3], tokens of each pathway
    GIVEN_ITEMS = "given_items"  # [B, W, 3], semantic IDs to score
    FOUND_ITEMS = "found_items"  # [B, W, 3], semantic IDs, best first
    ITEM_SCORES = "item_scores"  # [B, W], log-probability of each found item in nat
    TOKEN_SCORES = "token_scores"  # [B, W, 3], log-probability of each token of the given items in nat
    # Of graphs whose beams follow a catalogue. Resident, see runtime/item_index.py:
    FIRST_CLASSES = "first_classes"  # [V]
    PAIR_BITS = "pair_bits"  # [V, V / 32]
    PAIR_RANKS = "pair_ranks"  # [V, V / 32]
    PAIR_CLASSES = "pair_classes"  # [N]
    PAIR_ROWS = "pair_rows"  # [N + 1]
    SID_ENTRIES = "sid_entries"  # [N]
    # Rules of each request, see runtime/item_rules.py:
    REQUEST_LIMITS = "request_limits"  # [B, 3]: beams, excluded semantic IDs, whether categories are restricted
    ALLOWED_CLASSES = "allowed_classes"  # [B, C], 0 or 1
    EXCLUDED_SIDS = "excluded_sids"  # [B, E], numbers of entries, ascending


class GraphTensor(BaseModel):
    """One input or output.

    Args:
        name: As the ONNX file and the plan spell it.
        role: What it is for. None: nobody asks for it by role.
        dtype: Its data type, such as float16.
        axes: For each axis what its size follows: the batch, the context, or nothing (then the size itself).
        kind: `per_request`: given with every batch. `resident`: bound once, kept on the device, swapped between batches.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    role: Role | None
    dtype: DType
    axes: tuple[Axis, ...]
    kind: Literal["per_request", "resident"] = "per_request"

    @model_validator(mode="after")
    def _resident_is_fixed(self) -> GraphTensor:
        """It has no batch and no context, and what was captured for one size could not run another."""
        if self.kind == "resident" and not all(isinstance(axis, int) for axis in self.axes):
            raise ValueError(f"tensor '{self.name}' is resident, so its axes must have fixed sizes, not {list(self.axes)}")
        return self

    @property
    def dims(self) -> tuple[int, ...]:
        """Sizes with -1 for what follows the batch or the context, as TensorRT gives them."""
        return tuple(axis if isinstance(axis, int) else -1 for axis in self.axes)

    def shape(self, batch: int, context: int) -> tuple[int, ...]:
        """The shape for a batch of requests whose longest context has so many tokens."""
        sizes = {BATCH: batch, CONTEXT: context}
        return tuple(axis if isinstance(axis, int) else sizes[axis] for axis in self.axes)

    def nbytes(self, batch: int, context: int) -> int:
        """Bytes for a batch of requests whose longest context has so many tokens."""
        return math.prod(self.shape(batch, context)) * DTYPES[self.dtype].bytes


class GraphIO(BaseModel):
    """Inputs and outputs of a graph.

    Args:
        inputs: In the order of the graph.
        outputs: Likewise.
        min_context: Tokens of the shortest context a plan takes. Runners of plans fill a shorter one up.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    inputs: tuple[GraphTensor, ...]
    outputs: tuple[GraphTensor, ...]
    min_context: int = Field(ge=1)

    @model_validator(mode="after")
    def _unambiguous(self) -> GraphIO:
        tensors = (*self.inputs, *self.outputs)
        names, roles = [tensor.name for tensor in tensors], [tensor.role.value for tensor in tensors if tensor.role is not None]
        for what, found in (("name", names), ("role", roles)):
            if twice := sorted({each for each in found if found.count(each) > 1}):
                raise ValueError(f"{what} given to more than one tensor: {', '.join(twice)}")
        return self

    @property
    def per_request(self) -> tuple[GraphTensor, ...]:
        """The inputs that come with every batch."""
        return tuple(tensor for tensor in self.inputs if tensor.kind == "per_request")

    @property
    def resident(self) -> tuple[GraphTensor, ...]:
        """The inputs that are bound once."""
        return tuple(tensor for tensor in self.inputs if tensor.kind == "resident")

    def has(self, role: Role) -> bool:
        """Whether any input or output plays this role."""
        return any(tensor.role is role for tensor in (*self.inputs, *self.outputs))

    def tensor(self, role: Role) -> GraphTensor:
        """The input or output of a role.

        Raises:
            ArtifactError: The graph has none, so that it is the wrong form of the graph.
        """
        for tensor in (*self.inputs, *self.outputs):
            if tensor.role is role:
                return tensor
        roles = ", ".join(tensor.role.value for tensor in (*self.inputs, *self.outputs) if tensor.role is not None)
        hint = "model.onnx and its plans find items; scoring.onnx and its plans score given ones"
        raise ArtifactError(f"the graph has no {role.value}", where=f"it has {roles or 'none'}", hint=hint)

    def name(self, role: Role) -> str:
        """The name of the input or output of a role.

        Raises:
            ArtifactError: The graph has none.
        """
        return self.tensor(role).name

    def shapes(self, batch: int, context: int) -> dict[str, tuple[int, ...]]:
        """Shapes of the inputs that come with a batch of requests."""
        return {tensor.name: tensor.shape(batch, context) for tensor in self.per_request}

    def sizes(self, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, int]:
        """Requests and tokens of the context in a batch of these input shapes: the way back from `shapes`."""
        features = self.tensor(Role.CONTEXT_FEATURES)
        shape = shapes[features.name]
        return shape[features.axes.index(BATCH)], shape[features.axes.index(CONTEXT)]


def parse_io(metadata: Mapping[str, str], where: str) -> GraphIO:
    """The contract in the metadata of an ONNX file.

    Raises:
        ArtifactError: There is none, or it is malformed.
    """
    hint = "take a file that `onerec-trt export` of this version wrote; run the stage again"
    if METADATA_KEY not in metadata:
        raise ArtifactError("the ONNX file does not say what its inputs and outputs are", where=where, hint=hint)
    try:
        return GraphIO.model_validate_json(metadata[METADATA_KEY])
    except ValidationError as error:
        problem = f"the description of the graph's inputs and outputs is malformed: {error.errors()[0]['msg']}"
        raise ArtifactError(problem, where=where, hint=hint) from None
