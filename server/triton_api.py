"""The only importer of `tritonclient`: the server's configuration schema, its clients, and what it calls data types."""

from __future__ import annotations

from typing import Any, Literal

from ..core.extras import optional

Protocol = Literal["http", "grpc"]

# What the protocol calls a data type; configurations put TYPE_ before it.
DATA_TYPES = {"float32": "FP32", "float16": "FP16", "int64": "INT64", "int32": "INT32", "uint64": "UINT64", "uint8": "UINT8"}


def config_schema() -> Any:
    """The module with the message `ModelConfig`, generated from the server's own schema.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    return optional("tritonclient.grpc.model_config_pb2")


def text_format() -> Any:
    """Protobuf's text format, which config.pbtxt is written in."""
    optional("tritonclient.grpc")
    return optional("google.protobuf.text_format")


def json_format() -> Any:
    """Protobuf's JSON form, which the server's load call takes a configuration in."""
    optional("tritonclient.grpc")
    return optional("google.protobuf.json_format")


def client_module(protocol: Protocol) -> Any:
    """The client library of a protocol.

    Raises:
        MissingExtraError: tritonclient is not installed.
    """
    return optional(f"tritonclient.{protocol}")


def server_error() -> type[Exception]:
    """What the client libraries raise where the server refuses or cannot be reached."""
    error: type[Exception] = optional("tritonclient.utils").InferenceServerException
    return error


def shared_memory_module() -> Any:
    """The client library's system shared memory."""
    return optional("tritonclient.utils.shared_memory")
