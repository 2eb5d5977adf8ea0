"""Ways in which the folder of a stage that wrote `sub/loud` can be damaged."""

from __future__ import annotations

import json
from pathlib import Path

from onerec_trt.core.records import RECORD_NAME

DAMAGES = ("change", "remove", "add", "record", "earlier version")


def tamper(folder: Path, damage: str) -> None:
    """Damage the folder in one of the ways."""
    loud, record = folder / "sub" / "loud", folder / RECORD_NAME
    if damage == "change":
        loud.write_text("HELLo")
    elif damage == "remove":
        loud.unlink()
    elif damage == "add":
        (folder / "extra").write_text("x")
    else:
        values = json.loads(record.read_text())
        del values["wrote" if damage == "record" else "sources"]
        record.write_text(json.dumps(values))
