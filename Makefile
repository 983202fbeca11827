# `make setup` once; then the targets use its environment, or another by `make PYTHON=...`.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: setup lint type test test-runtimes wheel bench bench-convert bench-bodies bench-acceptance \
	bench-perplexity bench-sentences bench-large

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

bench: bench-convert bench-bodies

bench-convert:
	$(PYTHON) benchmarks/convert.py

# Speed and load memory of the operators' bodies on stock ONNX Runtime
bench-bodies:
	$(PYTHON) benchmarks/bodies.py

# Every model, scheme and target against the oracle; minutes
bench-acceptance:
	$(PYTHON) benchmarks/acceptance.py

# Perplexity gaps and sentence similarity on real models; need ../shared
bench-perplexity:
	$(PYTHON) benchmarks/perplexity.py

bench-sentences:
	$(PYTHON) benchmarks/sentence_similarity.py ../shared/data/wikitext2-test.txt

# A model over 2 GB
bench-large:
	$(PYTHON) benchmarks/large_model.py

wheel:
	$(PYTHON) -m build --no-isolation
