"""Standard output and standard error of the command line: what they cannot write."""

from __future__ import annotations

import io
import os
import sys

from ..core.errors import ArtifactError


def unwritten_output() -> ArtifactError | None:
    """The typed error where standard output takes nothing more, such as a file on a full disk; None where all is written."""
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more
        return stream_error(error)
    return None


def stream_error(error: OSError) -> ArtifactError:
    """The typed error for what standard output refused."""
    hint = "free space there, or send the output elsewhere; finished stages are kept"
    return ArtifactError(f"standard output cannot be written: {error.strerror or error}", where="standard output", hint=hint)


def accept_any_character() -> None:
    """Where the encoding of a stream lacks a character, an escape such as \\u2713 is printed: no run fails for a check mark."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
