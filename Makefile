# Everything a fresh machine needs: Python 3.11 or later and make. `make demo`, `make test`; the rest is in `make help`.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

MODEL ?= demo/resnet18-digits.pt
DATA ?= demo/images
SIZE ?= 32
FILES ?= demo/compressed/original.onnx demo/compressed/model.onnx
PROVIDER ?= cpu
BENCH ?= build/benchmark

.PHONY: help demo test lint docs bench-uniform bench-factors bench-search bench-certificates bench-overhead bench-coverage bench bench-gpu bench-harness clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bocompress needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train resnet18 on handwritten digits, compress it, export, verify, measure, report
	rm -rf demo
	$(BIN)/python -m benchmarks.digits demo
	$(BIN)/bocompress-export demo/resnet18-digits.pt --data demo/images --input-size 32 --out demo/compressed

demo/compressed/original.onnx:
	$(MAKE) demo

demo/compressed/model.onnx: demo/compressed/original.onnx

test: $(READY) lint  ## the whole suite, lint and types
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(READY)  ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## write docs/options.md and the tables of docs/results.md anew
	$(BIN)/python -m docs.generate

bench-uniform: $(READY)  ## MODEL, DATA, SIZE: the search's plan against every uniform plan, on images outside the search
	$(BIN)/python -m benchmarks.peers.uniform $(MODEL) $(DATA) --input-size $(SIZE)

bench-factors: $(READY)  ## MODEL, DATA, SIZE: what each kind of factors is worth at equal ranks, before and after recalibration
	$(BIN)/python -m benchmarks.peers.factors $(MODEL) $(DATA) --input-size $(SIZE)

bench-search: $(READY)  ## MODEL, DATA, SIZE: bocompress's search beside random, uniform, greedy and four optimisers (hours)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.peers.search $(MODEL) $(DATA) --input-size $(SIZE) --add

bench-certificates: $(READY)  ## how often stopped searches are wrong where the Gaussian process is right (an hour)
	$(BIN)/python -m benchmarks.peers.certificates

bench-overhead: $(READY)  ## what the search costs beside its looks, at 16 and 50 layers
	$(BIN)/python -m benchmarks.peers.overhead

bench-coverage: $(READY)  ## every torchvision classifier compressed at half of every cap, exported, verified (an hour or more)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.peers.coverage

bench: $(READY) $(FILES)  ## FILES="a.onnx b.onnx": size, time, memory, operators side by side (default: the demo's pair)
	$(BIN)/bocompress benchmark $(FILES) --provider $(PROVIDER) --profile --out $(BENCH)

bench-gpu: $(READY)  ## FILES: the same on CUDA; says what is missing where there is no GPU
	@$(BIN)/python -c 'import sys; from benchmarks.compare import explain_absence; sys.exit(explain_absence(["cuda"]))'
	@$(MAKE) --no-print-directory bench PROVIDER=cuda BENCH='$(BENCH)-gpu'

bench-harness: $(READY) $(FILES)  ## FILES: ten repeats of the benchmark beside torch.utils.benchmark
	$(BIN)/python -m benchmarks.peers.harness $(FILES)

clean:  ## remove the environment and the demo
	rm -rf $(VENV) demo build
