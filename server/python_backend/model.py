"""The model that Triton Inference Server's Python backend loads: checks requests, runs them in batches, and answers each by itself."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...core.arrays import Array
from ...core.errors import OnerecTrtError, RequestError
from ...runtime.item_rules import ItemRules
from ..repository.catalogues import Catalogues
from ..repository.served_io import RULE_INPUTS, context_io, follows_catalogue
from ..repository.version import open_version
from ..trust import trusted_keys
from .answers import Answers, PlainAnswers
from .catalogue import CatalogueAnswers
from .checks import check_request
from .dlpack import Lent, taken
from .engines import load_engine
from .item_requests import rules_of
from .metrics import Metrics
from .orphan_watch import end_with_parent
from .packing import Group, Sizes, fill, groups


class TritonPythonModel:
    """One instance of a version. The server calls its methods, which have the names and arguments it wants."""

    def initialize(self, args: Mapping[str, str]) -> None:
        """Load the version whose files are those that were put there, and warm it up: the server calls it ready when this returns.

        Raises:
            OnerecTrtError: The version was changed or does not fit this machine; the server refuses to load it.
        """
        end_with_parent()
        self._utils: Any = importlib.import_module("triton_python_backend_utils")
        folder = Path(args["model_repository"], args["model_version"])
        self._version = open_version(folder)
        self._where = f"{args['model_name']} version {args['model_version']}"
        self._metrics = Metrics(self._utils, args["model_name"], args["model_version"])
        self._engine = load_engine(folder, self._version, int(args["model_instance_device_id"]), trusted_keys(os.environ))
        self._io = context_io(self._version.io)  # what every request brings
        self._answers: Answers = PlainAnswers(self._engine)
        if follows_catalogue(self._version.io):
            self._answers = CatalogueAnswers(self._engine.runner, Catalogues(folder.parent), self._catalogue_told)
        shapes = self._engine.shapes()
        graphs = self._engine.warm_up(shapes)
        self._metrics.warmed(len(shapes), graphs)
        if self._engine.pacing is not None:
            self._engine.pacing.back()
        self._utils.Logger.log_info(f"{self._where}: warmed up with {len(shapes)} batch shapes, {graphs} of them CUDA graphs")

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """Answer each request with items, or with an error of its own.

        The server hands the next batch over when this returns. Where it is too early for that, the answers leave before.
        """
        pacing = self._engine.pacing
        if pacing is None:
            return self._answered(requests)
        try:
            answers = self._answered(requests)
            early = pacing.early()
            if early:
                self._send(requests, answers)
                pacing.hold_off()
        finally:
            pacing.back()
        return None if early else answers

    def _send(self, requests: Sequence[Any], answers: Sequence[Any]) -> None:
        for request, answer in zip(requests, answers, strict=True):
            request.get_response_sender().send(answer, flags=self._utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answered(self, requests: Sequence[Any]) -> list[Any]:
        answers: list[Any] = [None] * len(requests)
        arrays: dict[int, dict[str, Array]] = {}
        rules: dict[int, Sequence[ItemRules]] = {}
        for place, request in enumerate(requests):
            try:
                arrays[place], rules[place] = self._checked(request)
            except RequestError as error:
                answers[place] = self._refusal(error)
        places = list(arrays)
        for group in groups(self._version.limits, [self._sizes(arrays[place]) for place in places]):
            members = [places[position] for position in group.places]
            for place, answer in zip(members, self._run(group, [(arrays[place], rules[place]) for place in members]), strict=True):
                answers[place] = answer
        return answers

    def _checked(self, request: Any) -> tuple[dict[str, Array], Sequence[ItemRules]]:
        """The inputs of a request, and the rules of each of its contexts, if the model takes some."""
        arrays = {tensor.name(): taken(tensor) for tensor in request.inputs()}
        given = {name: arrays.pop(name) for name in RULE_INPUTS if name in arrays} if follows_catalogue(self._version.io) else {}
        check_request(self._io, self._version.limits, arrays, self._where)
        return arrays, rules_of(given, self._sizes(arrays).contexts, self._where)

    def _sizes(self, arrays: Mapping[str, Array]) -> Sizes:
        return Sizes(*self._io.sizes({name: array.shape for name, array in arrays.items()}))

    def _run(self, group: Group, requests: Sequence[tuple[Mapping[str, Array], Sequence[ItemRules]]]) -> list[Any]:
        """The answers of requests that share an execution; the same error for each where that fails."""
        arrays, rules = [each for each, _ in requests], [each for _, each in requests]
        try:
            room = {name: self._engine.room(name, shape) for name, shape in self._io.shapes(group.rows, group.tokens).items()}
            fill(self._io, room, arrays)
            answers = self._answers.run(room, [self._sizes(each).contexts for each in arrays], rules)
        except OnerecTrtError as error:
            self._metrics.failed("model", len(requests))
            failure = self._utils.TritonError(str(error), self._utils.TritonError.INTERNAL)
            return [self._utils.InferenceResponse(output_tensors=[], error=failure) for _ in requests]
        return [self._refusal(each) if isinstance(each, RequestError) else self._answer(each) for each in answers]

    def _answer(self, outputs: Mapping[str, Array]) -> Any:
        tensors = [self._utils.Tensor.from_dlpack(name, Lent(array)) for name, array in outputs.items()]
        return self._utils.InferenceResponse(output_tensors=tensors)

    def _refusal(self, error: RequestError) -> Any:
        self._metrics.failed("request")
        return self._utils.InferenceResponse(
            output_tensors=[], error=self._utils.TritonError(str(error), self._utils.TritonError.INVALID_ARG)
        )

    def _catalogue_told(self, error: Exception | None) -> None:
        """Another catalogue is served, or could not be."""
        self._metrics.catalogue(loaded=error is None)
        if error is not None:
            print(f"{self._where}: the catalogue stays as it is: {error}", file=sys.stderr, flush=True)
