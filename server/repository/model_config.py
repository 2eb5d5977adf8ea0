"""From the description of a version to the server's config.pbtxt and back. Nothing in it is written by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ...core.errors import ArtifactError
from ...core.text_files import read_bytes
from ..triton_api import DATA_TYPES, config_schema, text_format
from .served_io import ServedTensor, served_inputs, served_outputs
from .version import VersionDescription

CONFIG_FILE = "config.pbtxt"
CONFIGS, _CONFIG_ENDING = "configs", ".pbtxt"  # where a server looks for the configuration that `--model-config-name` names
PROMOTED, IO, BUCKETS = "promoted", "io", "context_buckets"  # parameters: promotions, newest first; the contract; for clients
_SEPARATOR = ","
_HEADER = """# Written by `onerec-trt repository`; it is written anew at every promotion.
# Batching: {why}.
"""


def model_config(description: VersionDescription, promoted: Sequence[int]) -> Any:
    """The configuration message that serves one version of a model.

    Args:
        description: The version.
        promoted: Versions that were promoted, newest first; the first is this one.
    """
    assert promoted[0] == description.version
    config = config_schema().ModelConfig()
    config.name = description.name
    config.backend = description.flavor
    if description.flavor == "tensorrt":
        config.platform, config.default_model_filename = "tensorrt_plan", description.model_file
    config.max_batch_size = description.batching.max_batch
    config.version_policy.specific.versions.append(description.version)
    _tensors(config, description)
    _instances(config, description)
    _batcher(config, description)
    config.response_cache.enable = False  # its key holds only the inputs, so items swapped inside a version would be served stale
    for key, value in _parameters(description, promoted).items():
        config.parameters[key].string_value = value
    return config


def config_name(version: int) -> str:
    """What `--model-config-name` calls the configuration that serves one version, whichever is promoted."""
    return f"version-{version}"


def config_file(version: int) -> Path:
    """Its path in a model's folder."""
    return Path(CONFIGS, config_name(version) + _CONFIG_ENDING)


def config_text(description: VersionDescription, promoted: Sequence[int]) -> str:
    """Content of config.pbtxt."""
    text: str = text_format().MessageToString(model_config(description, promoted))
    return _HEADER.format(why=description.batching.why) + text


def read_config(path: Path) -> Any:
    """The configuration message of a config.pbtxt, checked against the server's schema.

    Raises:
        ArtifactError: It is missing or malformed.
    """
    content = read_bytes(path, hint="run `onerec-trt repository --promote`").decode("utf-8", "replace")
    parsing = text_format()
    try:
        return parsing.Parse(content, config_schema().ModelConfig())
    except parsing.ParseError as error:
        hint = "write it anew with `onerec-trt repository --promote`"
        raise ArtifactError(f"the model's configuration is malformed: {error}", where=str(path), hint=hint) from None


def promotions(path: Path) -> tuple[int, ...]:
    """Versions that were promoted, newest first, as config.pbtxt remembers them. The first one is served.

    Raises:
        ArtifactError: The file is malformed, or was not written by `onerec-trt repository`.
    """
    text = read_config(path).parameters[PROMOTED].string_value
    if not text or not all(part.isdecimal() for part in text.split(_SEPARATOR)):
        hint = "write it anew with `onerec-trt repository --promote`"
        raise ArtifactError("the model's configuration does not say which versions were promoted", where=str(path), hint=hint)
    return tuple(int(part) for part in text.split(_SEPARATOR))


def _tensors(config: Any, description: VersionDescription) -> None:
    """Inputs that come with a request, and outputs. The batch is no part of the server's dims."""
    for tensor in served_inputs(description.io):
        added = config.input.add()
        _describe(added, tensor)
        # Requests of different context may share a batch where the backend looks at each by itself.
        added.allow_ragged_batch = description.flavor == "python" and -1 in added.dims
        added.optional = tensor.optional
    for tensor in served_outputs(description.io):
        _describe(config.output.add(), tensor)


def _describe(added: Any, tensor: ServedTensor) -> None:
    added.name = tensor.name
    added.data_type = config_schema().DataType.Value(f"TYPE_{DATA_TYPES[tensor.dtype]}")
    added.dims.extend(tensor.dims)


def _instances(config: Any, description: VersionDescription) -> None:
    group = config.instance_group.add()
    group.count = description.resources.instances
    group.kind = group.KIND_GPU if description.resources.gpus else group.KIND_CPU
    group.gpus.extend(range(description.resources.gpus))  # left out, the server would take every GPU it sees; `count` is for each
    if description.flavor == "tensorrt":
        group.profile.extend(str(number) for number in range(len(description.limits)))  # without this, profile 0 alone is used


def _batcher(config: Any, description: VersionDescription) -> None:
    batching, batcher = description.batching, config.dynamic_batching
    if batching.preferred < batching.max_batch:
        batcher.preferred_batch_size.append(batching.preferred)
    batcher.max_queue_delay_microseconds = 0
    if batching.max_queue:
        _limit_queue(batcher.default_queue_policy, batching.max_queue)


def _limit_queue(policy: Any, requests: int) -> None:
    """Refuse what finds so many requests waiting, and what has waited for longer than its client wants.

    That has a price, so a queue of any length has no policy. With one, the server's batcher prepares a batch only once an instance is
    free. An instance tells so before it counts as free, and a batcher that looks in between looks again when the next request comes, or
    after half a second (`WaitForPayloadSlotAvailable` in dynamic_batch_scheduler.cc of the server's core, 2.51 and later).
    """
    policy.max_queue_size = requests
    policy.timeout_action, policy.allow_timeout_override = policy.REJECT, True


def _parameters(description: VersionDescription, promoted: Sequence[int]) -> dict[str, str]:
    found = {
        **description.parameters,
        PROMOTED: _SEPARATOR.join(map(str, promoted)),
        IO: description.io.model_dump_json(),
    }
    if description.context_buckets:
        found[BUCKETS] = _SEPARATOR.join(map(str, description.context_buckets))
    if description.flavor == "tensorrt" and len(description.limits) > 1:
        found["execution_context_allocation_strategy"] = "ON_PROFILE_CHANGE"  # else each profile takes the scratch memory of the largest
    return dict(sorted(found.items()))
