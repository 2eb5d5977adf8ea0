"""What a recipe asks for and its target leaves out is said, option by option; all others are used."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from onerec_trt.builders.unused_options import _OF_ONE_TARGET, warn_of_unused
from onerec_trt.core.recipe import BuildOptions

ROOT = Path(__file__).parents[3]


def _warned(caplog: pytest.LogCaptureFixture, options: BuildOptions) -> list[str]:
    caplog.clear()
    warn_of_unused(options)
    return [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]


def test_each_option_that_is_left_out_is_named(caplog: pytest.LogCaptureFixture) -> None:
    options = BuildOptions(compute_capabilities=("8.9",), plugins=True, timing_cache=Path("cache"), strict_timing_cache=True)
    assert _warned(caplog, options) == [
        f"build.{name} is of the target tensorrt alone: a build for tensorrt-rtx leaves it out"
        for name in ("timing_cache", "strict_timing_cache", "plugins")
    ]
    assert _warned(caplog, options.model_copy(update={"target": "tensorrt"})) == [
        "build.compute_capabilities is of the target tensorrt-rtx alone: a build for tensorrt leaves it out"
    ]


def test_nothing_is_said_of_defaults(caplog: pytest.LogCaptureFixture) -> None:
    assert _warned(caplog, BuildOptions()) == []
    assert _warned(caplog, BuildOptions(target="tensorrt")) == []


def test_they_are_the_options_that_the_documentation_gives_to_one_target() -> None:
    rows = re.findall(r"^\| `build\.(\w+)` \|.*? \| (.*)$", (ROOT / "docs" / "recipes.md").read_text(), re.M)
    said = {name: text.split("`")[1] for name, text in rows if re.match(r"`[\w-]+` only", text)}
    assert said == {name: target for target, names in _OF_ONE_TARGET.items() for name in names if name != "fp8_accumulation"}
