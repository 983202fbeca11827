# `make setup` once; then the targets use its environment, or another by `make PYTHON=...`.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: setup lint type test test-runtimes bench bench-convert wheel

setup:
	python3 -m venv .venv
	.venv/bin/python -m pip install -e ".[dev]"

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

type:
	$(PYTHON) -m mypy

# tests/ and the doctests of zq2onnx
test:
	$(PYTHON) -m pytest

# One portable file on several releases of ONNX Runtime, each in an environment of its own
test-runtimes:
	$(PYTHON) tests/runtimes/run.py

bench: bench-convert

bench-convert:
	$(PYTHON) benchmarks/convert.py

wheel:
	$(PYTHON) -m build --no-isolation
