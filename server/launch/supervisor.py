"""Starts a server on a repository and watches over it: promotions are loaded, bad versions set aside, dead instances replaced."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from http.client import HTTPException
from pathlib import Path

from ...core.errors import ArtifactError
from ..repository.model_config import model_config
from ..repository.store import Repository
from ..repository.version import VersionDescription
from ..triton_api import json_format
from ..trust import require_trusted, trust_environment
from .control import Control
from .flags import Endpoints, exit_timeout_s, listening_arguments, server_arguments
from .installation import Installation, find_server
from .processes import end_with_parent, stubs
from .shared_memory import region_prefix, remove_leftovers

_LOOK_EVERY_S = 0.25
_START_TIMEOUT_S = 120.0
_ENDING_S = 5.0  # from its last connection to its end, of a server that dies
_RETIRING_S = 5.0  # for requests in flight at instances that were replaced
_OVERDUE_S = 10.0  # of a server that neither ends in order nor gives up
_EMPTY_S = 3.0  # from the end of its last instance to its own, of a server that is to end: it looks every second
READY_LINE = "serving on"  # begins what is said once every model is ready; its addresses follow
Say = Callable[[str], None]


@dataclass(frozen=True)
class ServeOptions:
    """How to serve.

    Args:
        server: See `find_server`.
        models: Names. Empty: all of the repository.
        endpoints: Address and ports; a port of 0 is chosen.
        shared_memory: Let clients register shared memory.
        trust: Public keys, one of which must have signed every model. Default: no signature is asked for.
    """

    server: Path | None
    models: tuple[str, ...]
    endpoints: Endpoints
    shared_memory: bool
    trust: tuple[Path, ...] = ()


class _ServerLostError(ArtifactError):
    """The server ended by itself, or does not answer any more: no version is to blame."""


class Supervisor:
    """A running server and what it serves.

    Args:
        repository: What it serves.
        process: The server.
        control: Its restricted side.
        trust: Keys whose signatures it demands.
        say: Told what happens.
    """

    def __init__(
        self, repository: Repository, process: subprocess.Popen[bytes], control: Control, trust: tuple[Path, ...], say: Say
    ) -> None:
        self._repository, self._process, self._control, self._trust, self._say = repository, process, control, trust, say
        self._served: dict[str, VersionDescription] = {}
        self._configs: dict[str, bytes] = {}
        self._instances: dict[str, set[int]] = {}
        self._retiring: dict[int, float] = {}
        self._replaced = 0

    def load(self, model: str) -> None:
        """Serve the promoted version of a model; where it cannot be loaded, set it aside and serve the one before.

        Raises:
            ArtifactError: No version that was promoted can be loaded, or the server is lost.
        """
        while True:
            self._configs[model] = self._config(model)  # first: what is promoted from here on is seen as a change
            version = self._repository.promoted(model)[0]
            try:
                description = _opened(self._repository, model, version, self._trust)
                self._load(description)
            except _ServerLostError:
                raise
            except ArtifactError as error:
                self._set_aside(model, version, error)
                continue
            self._begin(description)
            return

    def watch(self, stopped: threading.Event) -> None:
        """Until `stopped`: load what is promoted meanwhile, and replace instances that died.

        Raises:
            ArtifactError: The server is lost, or starts no new instances.
        """
        while not stopped.wait(_LOOK_EVERY_S):
            self._require_running()
            for model in list(self._served):
                if self._config(model) != self._configs[model]:
                    self._follow(model)
                elif died := self._instances[model] - stubs(self._process.pid).keys():
                    self._replace(model, died)
            self._retire()

    def _require_running(self) -> None:
        if (code := self._process.poll()) is not None:
            hint = "look at its log; start it again"
            raise _ServerLostError(f"the server ended with code {code}", where=str(self._repository.path), hint=hint)

    def _follow(self, model: str) -> None:
        """Serve what is promoted now. Where that cannot be told, or nothing else loads, what is served goes on."""
        try:
            self.load(model)
        except _ServerLostError:
            raise
        except ArtifactError as error:
            self._say(f"{model}: version {self._served[model].version} serves on: {error}")

    def _load(self, description: VersionDescription, *, replaced: int = 0) -> None:
        """Have the server load a version with the configuration that follows from its description, whatever is promoted meanwhile.

        If the server ends, that is what is wrong, not the version.

        Args:
            description: The version.
            replaced: Makes the configuration another one, without which a server that has loaded it does nothing.
        """
        config = model_config(description, [description.version])
        if replaced:
            config.parameters["replaced"].string_value = str(replaced)
        try:
            self._control.load(description.name, json_format().MessageToJson(config, preserving_proto_field_name=True))
        except (OSError, HTTPException) as error:
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(_ENDING_S)  # its connections close before it has ended
            self._require_running()
            raise _ServerLostError(f"the server does not answer: {error}", where=description.name, hint="look at its log") from None

    def _begin(self, description: VersionDescription) -> None:
        """Take note of what is served now."""
        model, earlier = description.name, self._instances.get(description.name, set())
        self._served[model] = description
        folder = str(self._repository.folder(model, description.version))
        running = {pid for pid, file in stubs(self._process.pid).items() if file.startswith(f"{folder}/")}
        self._instances[model] = running - earlier  # those of before end once their last request is answered
        self._say(f"{model}: version {description.version} is ready")

    def _config(self, model: str) -> bytes:
        """What says which version is promoted; as when it was last loaded where there is none."""
        try:
            return self._repository.config_path(model).read_bytes()
        except FileNotFoundError:
            return self._configs.get(model, b"")

    def _replace(self, model: str, died: set[int]) -> None:
        """The server never starts a dead instance again, and sends requests to it; a changed configuration makes new ones."""
        self._say(f"{model}: {len(died)} instance(s) died; starting new ones")
        self._replaced += 1
        remaining = self._instances[model] - died
        self._load(self._served[model], replaced=self._replaced)
        self._begin(self._served[model])
        self._retiring |= dict.fromkeys(remaining, time.monotonic() + _RETIRING_S)

    def _retire(self) -> None:
        """Beside a dead instance the server unloads no living one, which would keep its memory: end those that were replaced."""
        over = [pid for pid, deadline in self._retiring.items() if time.monotonic() >= deadline]
        for pid in [pid for pid in over if pid in stubs(self._process.pid)]:
            with suppress(ProcessLookupError):  # it ended this moment
                os.kill(pid, signal.SIGKILL)
        for pid in over:
            del self._retiring[pid]

    def _set_aside(self, model: str, version: int, error: ArtifactError) -> None:
        earlier = self._repository.set_aside(model, version, str(error))
        if earlier is None:
            raise error
        self._say(f"{model}: version {version} was set aside, it cannot be served: {error}")
        self._say(f"{model}: back to version {earlier}")


def serve(repository: Repository, options: ServeOptions, say: Say, stopped: threading.Event) -> None:
    """Serve a repository until `stopped`.

    Args:
        repository: What to serve.
        options: How.
        say: Told in lines what happens.
        stopped: Set by whoever wants it to end.

    Raises:
        ArtifactError: There is no server, it does not start or ends by itself, or no version of a model can be loaded.
    """
    models = options.models or repository.models()
    served = _checked(repository, models, options.trust, say)
    remove_leftovers()
    endpoints, key = _with_ports(options.endpoints), secrets.token_urlsafe()
    try:
        with tempfile.TemporaryDirectory(prefix="onerec-trt-serve-") as working:
            installation = find_server(options.server, Path(working))
            arguments = [
                *server_arguments(repository.path, served),
                *listening_arguments(endpoints, key, shared_memory=options.shared_memory),
                f"--backend-config=python,shm-region-prefix-name={region_prefix()}",
                *([f"--backend-directory={installation.backends}"] if installation.backends else []),
            ]
            with _started(installation, arguments, trust_environment(options.trust), exit_timeout_s(served)) as process:
                control = Control(endpoints, key)
                _wait_until_live(process, control, stopped, str(endpoints))
                supervisor = Supervisor(repository, process, control, options.trust, say)
                for model in models:
                    if stopped.is_set():
                        return
                    supervisor.load(model)
                say(f"{READY_LINE} {endpoints}")
                supervisor.watch(stopped)
            if process.returncode:
                say(f"the server did not end in order: code {process.returncode}; its log says why")
    finally:
        remove_leftovers()


def _opened(repository: Repository, model: str, version: int, trust: tuple[Path, ...]) -> VersionDescription:
    """A version whose files are those that were put there, and signed where that is asked for."""
    description = repository.open(model, version)
    require_trusted(repository.folder(model, version), description, trust)
    return description


def _checked(repository: Repository, models: tuple[str, ...], trust: tuple[Path, ...], say: Say) -> list[VersionDescription]:
    """The version of each model to begin with. One whose files were changed is set aside before the server sees it."""
    served = []
    for model in models:
        while True:
            version = repository.promoted(model)[0]
            try:
                served.append(_opened(repository, model, version, trust))
                break
            except ArtifactError as error:
                if repository.set_aside(model, version, str(error)) is None:
                    raise
                say(f"{model}: version {version} was set aside: {error}")
    return served


@contextmanager
def _started(
    installation: Installation, arguments: list[str], environment: Mapping[str, str], exit_s: int
) -> Iterator[subprocess.Popen[bytes]]:
    """The server, in a process group of its own; at the end it answers what it has begun, or is killed some time after `exit_s` seconds.

    Whatever it leaves goes with it: a stub of the Python backend that had not begun to run its model when the server was killed
    waits for it for ever.
    """
    process = subprocess.Popen(
        [installation.program, *arguments],
        env={**installation.environment(), **environment},
        stdin=subprocess.DEVNULL,
        preexec_fn=end_with_parent,
        process_group=0,
    )
    try:
        yield process
    finally:
        _end(process, exit_s + _OVERDUE_S)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Have a server end, by force where it does not.

    One that had an instance die under load waits for it for ever (2.51). Its other instances end after the last request is answered, so
    that nothing is lost once all are gone.
    """
    had_instances = bool(stubs(process.pid))
    process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + patience_s
    while time.monotonic() < deadline:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_LOOK_EVERY_S)
            return
        if had_instances and not stubs(process.pid):
            had_instances, deadline = False, time.monotonic() + _EMPTY_S
    process.kill()
    process.wait()


def _wait_until_live(process: subprocess.Popen[bytes], control: Control, stopped: threading.Event, where: str) -> None:
    for _ in range(int(_START_TIMEOUT_S / _LOOK_EVERY_S)):
        if process.poll() is not None:
            hint = "its log says why: often a port that is in use"
            raise ArtifactError(f"the server did not start: it ended with code {process.returncode}", where=where, hint=hint)
        if control.live() or stopped.wait(_LOOK_EVERY_S):
            return
    raise ArtifactError(f"the server does not answer after {_START_TIMEOUT_S:.0f} s", where=where, hint="look at its log")


def _with_ports(endpoints: Endpoints) -> Endpoints:
    """Ports of 0 become free ones, held together so that they differ."""
    sockets = [socket.socket() for port in (endpoints.http, endpoints.grpc, endpoints.metrics) if port == 0]
    try:
        for each in sockets:
            each.bind((endpoints.address, 0))
        free = iter([int(each.getsockname()[1]) for each in sockets])
        return replace(
            endpoints,
            http=endpoints.http or next(free),
            grpc=endpoints.grpc or next(free),
            metrics=endpoints.metrics or next(free),
        )
    finally:
        for each in sockets:
            each.close()
