"""A client for served models: contexts in, items and scores out, over HTTP or gRPC, with inputs in shared memory where asked for.

It reads the contract from the served model's configuration, so it spells no names, and fills contexts up where the server wants that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from http.client import HTTPException
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from ..core.arrays import Array, dtype_name
from ..core.errors import ArtifactError, RequestError
from ..core.graph_io import GraphIO, Role
from ..runtime.item_rules import OPEN, ItemRules
from .client_memory import SharedInputs
from .client_rules import ItemIds, catalogue_digest, item_ids, rule_inputs
from .repository.model_config import BUCKETS, IO
from .repository.served_io import follows_catalogue, served_outputs
from .triton_api import DATA_TYPES, Protocol, client_module, server_error

# In gRPC's words. A server that cannot be reached has the same status as one whose queue is full, but not the same text.
_UNANSWERED = ("failed to connect", "DEADLINE_EXCEEDED")
_NO_SHARED_MEMORY = "ask a server on this machine that was started with `onerec-trt serve --shared-memory`"


@dataclass(frozen=True)
class Items:
    """Items of one context, best first.

    Attributes:
        sids_W3: Semantic IDs, int64; -1 where fewer than W were found.
        scores_W: Log-probabilities in nat, FP32; -inf there.
        ids: Of a model that follows a catalogue: ids of the items of each semantic ID, ascending.
        catalogue: Likewise: digest of the catalogue that served the request.
    """

    sids_W3: NDArray[np.int64]
    scores_W: NDArray[np.float32]
    ids: ItemIds = ()
    catalogue: str | None = None


def server_version(url: str) -> str:
    """The version of the server that answers HTTP at a host and port.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    client = client_module("http").InferenceServerClient(url)
    try:
        return str(client.get_server_metadata()["version"])
    finally:
        client.close()


class Client:
    """A model on a server. Not for several threads at once: give each its own.

    Args:
        url: Host and port, such as `127.0.0.1:8000`.
        model: Its name.
        protocol: `http` or `grpc`, each at a port of its own.
        shared_memory: Hand inputs over in /dev/shm. The server must be on this machine and allow it (`serve --shared-memory`).
        timeout: Seconds until a request is given up.

    Raises:
        RequestError: The server cannot be reached or does not serve the model.
        ArtifactError: The model was not put there by `onerec-trt repository`.
        MissingExtraError: tritonclient is not installed.
    """

    def __init__(
        self, url: str, model: str = "onerec", *, protocol: Protocol = "http", shared_memory: bool = False, timeout: float = 60.0
    ) -> None:
        self._library, self._protocol, self._model = client_module(protocol), protocol, model
        self._timeout, self._where = timeout, f"{model} at {url}"
        limits = {"network_timeout": timeout, "connection_timeout": timeout} if protocol == "http" else {}
        self._client = self._library.InferenceServerClient(url, **limits)
        parameters = self._parameters()
        try:
            self.io = GraphIO.model_validate_json(parameters.get(IO, ""))
        except ValidationError:
            hint = "put it into the repository with `onerec-trt repository`"
            raise ArtifactError("the served model does not say what its inputs and outputs are", where=self._where, hint=hint) from None
        self._memory = SharedInputs(self._client) if shared_memory else None
        self._buckets = tuple(int(tokens) for tokens in parameters.get(BUCKETS, "").split(",") if tokens)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Give connection and shared memory back."""
        if self._memory is not None:
            self._memory.close()
        self._client.close()

    def recommend(self, features_SF: Array, lengths_3: Sequence[int] | Array, rules: ItemRules | None = None) -> Items:
        """Items for one context.

        Args:
            features_SF: FP16 [S, F], tokens in the order static, short-term, long-term.
            lengths_3: Tokens of each pathway.
            rules: Of a model that follows a catalogue: what may come out. Default: any item.

        Raises:
            RequestError: The server refuses the request, or cannot be reached in time; or no model could follow the rules.
        """
        features_1SF, lengths_13 = np.asarray(features_SF)[None], np.asarray(lengths_3)[None]
        if lengths_13.dtype.kind in "iu":  # others are refused, which beats cutting fractions off
            lengths_13 = lengths_13.astype(np.int64)
        (items,) = self.recommend_batch(features_1SF, lengths_13, [rules] if rules else None)
        return items

    def recommend_batch(self, features_BSF: Array, lengths_B3: Array, rules: Sequence[ItemRules] | None = None) -> list[Items]:
        """Items for several contexts, sent together. Padding behind a context may hold anything.

        Args:
            features_BSF: FP16 [B, S, F].
            lengths_B3: Tokens of each pathway, int64.
            rules: As of `recommend`, for each context.

        Raises:
            RequestError: The server refuses the request, or cannot be reached in time; or no model could follow the rules.
        """
        features, lengths = self.io.name(Role.CONTEXT_FEATURES), self.io.name(Role.PATHWAY_LENGTHS)
        if rules is None and follows_catalogue(self.io):
            rules = [OPEN] * len(features_BSF)
        given = rule_inputs(rules, self.io.tensor(Role.ITEM_SCORES).dims[-1]) if rules else {}
        found = self.infer({features: features_BSF, lengths: lengths_B3, **given})
        sids, scores = found[self.io.name(Role.FOUND_ITEMS)], found[self.io.name(Role.ITEM_SCORES)]
        items = [Items(sids_W3, scores_W) for sids_W3, scores_W in zip(sids, scores, strict=True)]
        if not follows_catalogue(self.io):
            return items
        return [replace(each, ids=item_ids(found, row), catalogue=catalogue_digest(found, row)) for row, each in enumerate(items)]

    def infer(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name for inputs by name, as the contract has them.

        Raises:
            RequestError: The server refuses the request, or cannot be reached in time.
        """
        tensors = self._sent(self._filled_up(inputs))
        limit = {"timeout": int(self._timeout * 1e6)} if self._protocol == "http" else {"client_timeout": self._timeout}
        answer = self._call(lambda: self._client.infer(self._model, tensors, **limit))
        return {tensor.name: answer.as_numpy(tensor.name) for tensor in served_outputs(self.io)}

    def _filled_up(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """With a context as long as the next bucket, where the server batches equal shapes only. Longer ones are left to its refusal."""
        name = self.io.name(Role.CONTEXT_FEATURES)
        if name not in inputs or inputs[name].ndim != len(self.io.tensor(Role.CONTEXT_FEATURES).axes):
            return dict(inputs)
        features_BSF = inputs[name]
        tokens = features_BSF.shape[1]
        wanted = next((bucket for bucket in self._buckets if bucket >= tokens), tokens)
        return {**inputs, name: np.pad(features_BSF, [(0, 0), (0, wanted - tokens), (0, 0)])} if wanted > tokens else dict(inputs)

    def _sent(self, inputs: Mapping[str, Array]) -> list[Any]:
        """Input tensors of the client library, with their content or the region of shared memory that holds it."""
        tensors = []
        for name, array in inputs.items():
            dtype = dtype_name(array.dtype)
            if dtype not in DATA_TYPES:
                what = f"input '{name}' is {dtype}, which no model takes: data-types are {', '.join(DATA_TYPES)}"
                raise RequestError(what, where=self._where, hint="convert it first")
            tensor = self._library.InferInput(name, list(array.shape), DATA_TYPES[dtype])
            if self._memory is None:
                tensor.set_data_from_numpy(np.ascontiguousarray(array))
            else:
                tensor.set_shared_memory(self._call(partial(self._memory.put, name, array), _NO_SHARED_MEMORY), array.nbytes)
            tensors.append(tensor)
        return tensors

    def _parameters(self) -> dict[str, str]:
        """Parameters of the served model's configuration."""
        if self._protocol == "http":
            config = self._call(lambda: self._client.get_model_config(self._model))
            return {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        config = self._call(lambda: self._client.get_model_config(self._model)).config
        return {key: value.string_value for key, value in config.parameters.items()}

    def _call(self, call: Any, refused: str = "") -> Any:
        """What a call gives; what the server or the network objects becomes a typed error. `refused`: what to do if the server does."""
        try:
            return call()
        except server_error() as error:
            if any(each in str(error) for each in _UNANSWERED):
                raise self._unanswered(error) from None
            raise RequestError(f"the server refuses: {error}", where=self._where, hint=refused) from None
        except (OSError, HTTPException) as error:
            raise self._unanswered(error) from None

    def _unanswered(self, error: Exception) -> RequestError:
        hint = "look whether the server runs, and at which address and port"
        return RequestError(f"the server does not answer: {error}", where=self._where, hint=hint)
