"""Records the part of TensorRT's Python API that core/ uses, from its bindings: no GPU and none of its libraries needed.

    pip download --no-deps tensorrt_cu13_bindings==11.4.0.106   (or tensorrt_cu12_bindings==10.6.0.post1), unpacked into FOLDER
    python tests/golden/record_tensorrt_api.py FOLDER tests/golden/tensorrt-11.4.json

The bindings link against three libraries, of which importing them needs nine symbols; a C compiler makes stand-ins.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CLASSES = [
    "Builder",
    "BuilderFlag",
    "DataType",
    "EngineInspector",
    "ExecutionContextAllocationStrategy",
    "IBuilderConfig",
    "ICudaEngine",
    "IExecutionContext",
    "IHostMemory",
    "ILogger",
    "INetworkDefinition",
    "IOptimizationProfile",
    "IPluginRegistry",
    "IProfiler",
    "IProgressMonitor",
    "ITensor",
    "ITimingCache",
    "LayerInformationFormat",
    "NetworkDefinitionCreationFlag",
    "OnnxParser",
    "ParserError",
    "ProfilingVerbosity",
    "Runtime",
    "TensorIOMode",
]
FUNCTIONS = ["get_plugin_registry"]
LIBRARIES = ("nvinfer", "nvonnxparser", "nvinfer_plugin")
SYMBOLS = [
    "getNvOnnxParserVersion",
    "initLibNvInferPlugins",
    "getPluginRegistry",
    "getBuilderPluginRegistry",
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
]
PROGRAM = f"""
import json, tensorrt_bindings as trt
def signature(member):
    lines = (getattr(member, "__doc__", None) or "").strip().splitlines()
    return lines[0].replace("tensorrt_bindings.tensorrt.", "") if callable(member) and lines and "->" in lines[0] else ""
api = {{}}
for name in {CLASSES}:
    kind = getattr(trt, name)
    api[name] = {{member: signature(getattr(kind, member)) for member in dir(kind) if not member.startswith("_")}}
functions = {{name: signature(getattr(trt, name)) for name in {FUNCTIONS}}}
print(json.dumps({{"version": trt.__version__, "classes": api, "functions": functions}}, indent=1, sort_keys=True))
"""


def main(bindings: Path, out: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "stand_in.c")
        source.write_text("".join(f"void *{symbol}(void) {{ return 0; }}\n" for symbol in SYMBOLS))
        for name in LIBRARIES:
            for major in (10, 11):
                subprocess.run(["cc", "-shared", "-fPIC", "-o", f"{folder}/lib{name}.so.{major}", source], check=True)
        environment = {**os.environ, "LD_LIBRARY_PATH": folder, "PYTHONPATH": str(bindings)}
        result = subprocess.run([sys.executable, "-c", PROGRAM], env=environment, check=True, capture_output=True, text=True)
    out.write_text(json.dumps(json.loads(result.stdout), indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
