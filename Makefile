# `make setup` once; then the targets use its environment, or another by `make PYTHON=...`.
PYTHON ?= $(if $(wildcard .venv/bin/python),.venv/bin/python,python3)

.PHONY: setup lint type test test-runtimes test-optimum library kernels asan wheel bench bench-convert bench-bodies \
	bench-acceptance bench-perplexity bench-sentences bench-large bench-calibrated bench-peers bench-methods \
	bench-budget bench-study bench-calibrate-large bench-cpu bench-cuda bench-cuda-ort bench-serving

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

# The operator library in place, as an editable install builds it
library:
	$(PYTHON) setup.py --quiet build_ext --inplace

# The CUDA kernels, compiled where sessions and wheels look for them: minutes at first, then what has changed
kernels:
	$(PYTHON) -m zq2onnx kernels build

# The operator library's tests with AddressSanitizer and UBSan in it. Python itself has neither, so that
# their runtime is loaded before it; leaks are Python's, and not looked for.
ASAN_LIBRARY = build/asan/libzq2onnx_ops.so
SANITIZE = -fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer
asan:
	mkdir -p $(dir $(ASAN_LIBRARY))
	$(CXX) -std=c++17 -O1 -g -Wall -Wextra -fPIC -shared -fvisibility=hidden $(SANITIZE) -Wl,-z,nodelete \
		runtime/csrc/*.cc runtime/csrc/*/*.cc -o $(ASAN_LIBRARY)
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 ZQ2ONNX_LIBRARY=$(CURDIR)/$(ASAN_LIBRARY) \
		$(PYTHON) -m pytest -n 0 tests/runtime

# One portable file on several releases of ONNX Runtime, each in an environment of its own
test-runtimes:
	$(PYTHON) tests/runtimes/run.py

# A packaged model opened by optimum, which pins an older transformers: in an environment of its own
test-optimum:
	$(PYTHON) tests/runtimes/run_optimum.py

bench: bench-convert bench-bodies

bench-convert:
	$(PYTHON) benchmarks/convert.py

# Speed and load memory of the operators' bodies on stock ONNX Runtime
bench-bodies:
	$(PYTHON) benchmarks/bodies.py

# The operator library's CPU kernels beside stock kernels, and the bars they are held to; ten minutes
bench-cpu:
	$(PYTHON) benchmarks/cpu_matmul.py

# The CUDA kernels beside the oracle and cuBLAS, and the bars they are held to; eight minutes, needs a GPU
bench-cuda:
	$(PYTHON) benchmarks/cuda_matmul.py

# Nodes in ONNX Runtime on a GPU, by the library and by their functions; five minutes, needs onnxruntime-gpu
bench-cuda-ort:
	$(PYTHON) benchmarks/cuda_ort.py

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

# What calibration leaves of round-to-nearest's divergence; half an hour, needs ../shared
bench-calibrated:
	$(PYTHON) benchmarks/calibrated.py

# The same beside ONNX Runtime's own quantizers; minutes, needs ../shared
bench-peers:
	$(PYTHON) benchmarks/peers.py

# A budget spent layer by layer against the same bytes spent evenly; minutes, needs ../shared
bench-budget:
	$(PYTHON) benchmarks/budget.py

# The study of 24 cells on the trained OPT, and its layers; ten minutes, needs ../shared
bench-study:
	$(PYTHON) benchmarks/study.py

# The same text from transformers, plain ONNX Runtime and onnxruntime-genai; minutes, needs ../shared
bench-serving:
	$(PYTHON) benchmarks/serving.py

# The methods of ZeroQuant-V2 beside each other, on the bundled model; half an hour
bench-methods:
	$(PYTHON) benchmarks/methods.py

# Time and memory of calibrating 302 M parameters; most of an hour, needs ../shared
bench-calibrate-large:
	$(PYTHON) benchmarks/calibrate_large.py

# With the operator library it is for the systems (manylinux) whose libraries have what that needs
wheel: kernels
	$(PYTHON) -m build --no-isolation --sdist --wheel
	for wheel in dist/*-linux_*.whl; do \
		[ ! -e "$$wheel" ] || PATH="$(dir $(PYTHON)):$$PATH" $(PYTHON) -m auditwheel repair --plat auto -w dist "$$wheel" \
			&& rm -f "$$wheel" || exit 1; done
