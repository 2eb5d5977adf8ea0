"""The restricted side of a running server: what is loaded, and loading. Only who started the server has the key."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from typing import Any

from ...core.errors import ArtifactError
from .flags import CONTROL_HEADER, Endpoints

_TIMEOUT_S = 600.0  # loading a plan of several GB and warming it up


class Control:
    """Calls to one server.

    Args:
        endpoints: Where it listens.
        key: Its control key.
    """

    def __init__(self, endpoints: Endpoints, key: str) -> None:
        self._endpoints, self._key = endpoints, key

    def live(self) -> bool:
        """Whether the server answers, and takes the key: something else may have its port."""
        try:
            return self._call("/v2/repository/index", {}, timeout=1.0)[0] == http.client.OK
        except (OSError, http.client.HTTPException, ValueError):
            return False

    def load(self, model: str, config: str) -> None:
        """Load a model, or load it again; the version that was served goes on serving until the new one is ready, and where that fails.

        Args:
            model: Its name.
            config: Its configuration as JSON, in place of config.pbtxt.

        Raises:
            ArtifactError: The server cannot load it; quotes the server.
            OSError, HTTPException: It does not answer.
        """
        status, answer = self._call(f"/v2/repository/models/{model}/load", {"parameters": {"config": config}})
        if status != http.client.OK:
            said = answer.get("error", "") if isinstance(answer, dict) else ""
            raise ArtifactError(f"the server cannot load the model: {said.strip()}", where=model, hint="look at the server's log")

    def _call(self, path: str, body: Mapping[str, Any], timeout: float = _TIMEOUT_S) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self._endpoints.address, self._endpoints.http, timeout=timeout)
        try:
            connection.request("POST", path, json.dumps(body), {CONTROL_HEADER: self._key})
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        return answer.status, json.loads(content) if content else None
