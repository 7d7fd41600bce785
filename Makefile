# Everything a fresh machine needs: Python 3.11 or later and make. `make demo`, `make test`; the rest is in `make help`.

PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
WHEEL := build/wheel
BIN := $(VENV)/bin
READY := $(VENV)/.ready

MODEL ?= demo/resnet18-digits.pt
DATA ?= demo/images
SIZE ?= 32
FILES ?= demo/compressed/original.onnx demo/compressed/model.onnx
PROVIDER ?= cpu
BENCH ?= build/benchmark
OPERATIONS ?= 0.9 0.8 0.7
OUT ?= build/$@
ARGS ?=

# What the demo's files are to the demo's network, they are not to another: its images are asked for, or drawn.
OTHER := $(filter-out file,$(origin MODEL))
IMAGES = $(if $(and $(OTHER),$(filter file,$(origin DATA))),,--data "$(DATA)") \
	$(if $(and $(OTHER),$(filter file,$(origin SIZE))),,--input-size $(SIZE))
TRAINED = $(if $(OTHER),,demo/resnet18-digits.pt)
FRESH = $(if $(filter file,$(origin OUT)),rm -rf "$(OUT)")
# A network of one's own is compressed first, unless its files are named.
OWN = $(and $(OTHER),$(filter file,$(origin FILES)))
PAPER_PARTS := table1 table3 table6 table2 norms samples switches table5
PAPER = OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.studies.paper
PAPER_ARGS = $(if $(RUNS),--runs $(RUNS)) $(ARGS)
GIVEN = "$(MODEL)" $(if $(and $(OTHER),$(filter file,$(origin DATA))),,"$(DATA)") \
	$(if $(and $(OTHER),$(filter file,$(origin SIZE))),,--input-size $(SIZE))
SUBJECT = $(GIVEN) $(PAPER_ARGS)
# Studies of the paper take FC3 on Fashion-MNIST unless a network is named.
FC3_OR_OTHER = $(if $(OTHER),$(SUBJECT),$(PAPER_ARGS))
EXPORT = $(BIN)/bocompress-export "$(MODEL)" $(IMAGES) --out "$(OUT)"

.PHONY: help demo edge-cpu edge-int8 edge-ort edge-smallest edge-fastest report test test-hard test-oldest test-wheel audit lint docs site bench-uniform bench-factors bench-search bench-objectives bench-targets bench-limits bench-certificates bench-overhead bench-candidates bench-edge bench-coverage bench-runtimes bench-finetune bench-recipe bench-structures bench-job bench-memory-format bench-channels bench bench-gpu bench-harness paper paper-table1 paper-table2 paper-table3 paper-table5 paper-table6 paper-norms paper-samples paper-switches clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "bocompress needs Python 3.11 or later; set PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(READY)

demo: $(READY)  ## train resnet18 on handwritten digits, compress it, export, verify, measure, report
	rm -rf demo
	$(BIN)/bocompress demo demo

demo/compressed/original.onnx:
	$(MAKE) demo

demo/compressed/model.onnx: demo/compressed/original.onnx

demo/resnet18-digits.pt: | $(READY)
	$(BIN)/python -m benchmarks.demo.digits demo

edge-cpu: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE, OUT, ARGS: float32 for this machine's CPU, ranks in steps that suit it
	$(FRESH)
	$(EXPORT) --rank-multiple auto $(ARGS)

edge-int8: $(READY) $(TRAINED)  ## likewise: and model.int8.onnx, quantized, evaluated and timed beside it
	$(FRESH)
	$(EXPORT) --precision int8 $(ARGS)

edge-ort: $(READY) $(TRAINED)  ## likewise: float32 and int8 in ORT format, with the operators a minimal build needs
	$(FRESH)
	$(EXPORT) --precision int8 --format ort $(ARGS)

edge-smallest: $(READY) $(TRAINED)  ## likewise: the fewest bytes to ship: low rank, smallest weights zero, int8, zipped
	$(FRESH)
	$(EXPORT) --method auto+cp --prune 0.2 --precision int8 --zip $(ARGS)

edge-fastest: $(READY) $(TRAINED)  ## likewise: ranks searched for measured time in place of parameters
	$(FRESH)
	$(EXPORT) --cost latency --rank-multiple auto $(ARGS)

report: $(READY) $(TRAINED)  ## OUT: the page of a run anew; without one, of edge-cpu with MODEL, DATA, SIZE
	test -e "$(OUT)/report.json" || $(MAKE) edge-cpu OUT="$(OUT)"
	$(BIN)/bocompress report "$(OUT)"

test: $(READY) lint  ## lint, and the suite but for what is hard or slow (five minutes on two cores)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-hard: $(READY)  ## thousands of hostile inputs, kills, faults, clusters, and whole jobs too slow for `make test`; docs/results.md has the counts
	$(BIN)/python -c 'import distributed, pycocotools, ray' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[ray,dask,detection]'
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -p tests.plugins.counting --hard-results benchmarks/results/hard.json -m "hard or slow" -n 2 --dist loadfile

# uv resolves downwards, which pip cannot. Formatters and type checkers are held to their newest versions only.
test-oldest: pyproject.toml  ## the suite with the lowest version of each dependency that pyproject.toml allows
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/python -m pip install --quiet uv
	$(OLDEST)/bin/uv pip install --quiet --python $(OLDEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	$(OLDEST)/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

# A wheel is what users have: it is built, installed with its own dependencies alone, and compresses the demo's network.
test-wheel: $(READY)  ## build the wheel, install it into a clean environment, and run `bocompress demo` there
	rm -rf $(WHEEL) && mkdir -p $(WHEEL)/dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir $(WHEEL)/dist .
	$(PYTHON) -m venv $(WHEEL)/venv
	$(WHEEL)/venv/bin/python -m pip install --quiet $(WHEEL)/dist/*.whl
	cd $(WHEEL) && venv/bin/bocompress demo demo
	test -s $(WHEEL)/demo/compressed/model.onnx && test -s $(WHEEL)/demo/compressed/report.html

audit: $(READY)  ## known vulnerabilities of the installed dependencies, by pip-audit (asks its database)
	$(BIN)/python -c 'import pip_audit' 2>/dev/null || $(BIN)/python -m pip install --quiet 'pip-audit>=2.9'
	$(BIN)/python -m pip_audit --strict --local --skip-editable

lint: $(READY)  ## ruff, mypy and the import order
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

docs: $(READY)  ## write docs/options.md, docs/licences.md and the tables of docs/results.md anew
	$(BIN)/python -m docs.generate

site: $(READY)  ## the documentation as a website in build/site, with the Python API from its docstrings
	$(BIN)/python -c 'import material, mkdocstrings_handlers.python' 2>/dev/null || $(BIN)/python -m pip install --quiet --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet --site-dir build/site

bench-uniform: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: the search's plan against every uniform plan, on images outside the search
	$(BIN)/python -m benchmarks.studies.search.uniform $(GIVEN)

bench-factors: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: what each kind of factors is worth at equal ranks, before and after reconstruction
	$(BIN)/python -m benchmarks.studies.network.factors $(GIVEN)

bench-search: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: bocompress's search beside random, uniform, greedy and four optimizers (hours)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.studies.search.comparison $(GIVEN) --add $(ARGS)

bench-objectives: $(READY)  ## FC3 on Fashion-MNIST by function norm, risk and error, with and without searched sparsity
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.search.objectives
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.export.exported

bench-targets: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: whether targets hold outside the run (an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.search.targets $(GIVEN)

bench-limits: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: the search within a limit of size beside other plans of that size (an hour)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.search.limits $(GIVEN)

bench-certificates: $(READY)  ## how often stopped searches are wrong where the Gaussian process is right (an hour)
	$(BIN)/python -m benchmarks.studies.search.certificates

bench-overhead: $(READY)  ## what the search costs beside its evaluations, at 16 and 50 layers
	$(BIN)/python -m benchmarks.studies.search.overhead

bench-candidates: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: what the evaluation of a candidate costs beside a bare forward pass
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.search.evaluation_cost $(GIVEN)

bench-edge: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE: bytes, time and accuracy of edge-int8 at three gammas, and time against operations
	$(BIN)/python -m benchmarks.studies.export.edge $(GIVEN)

bench-coverage: $(READY)  ## every torchvision classifier compressed at half of every break-even rank, exported, verified (an hour or more)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(BIN)/python -m benchmarks.studies.export.coverage

bench-runtimes: $(READY)  ## seven networks at their lowest operator set in ONNX Runtime 1.17 and in OpenVINO
	$(BIN)/python -m pip install --quiet --editable '.[openvino]'
	test -e build/ort117 || { $(PYTHON) -m venv build/ort117 && build/ort117/bin/python -m pip install --quiet onnxruntime==1.17.3 'numpy<2'; }
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.studies.export.runtimes --old-python build/ort117/bin/python

bench-finetune: $(READY)  ## MODEL, DATA, TRAIN, SIZE: what fine-tuning gives back at 5 % of the convolutions' weights (an hour)
	@test -n "$(TRAIN)" || { echo "bench-finetune needs TRAIN=folder/of/images, beside MODEL and DATA" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.network.finetune "$(MODEL)" "$(DATA)" "$(TRAIN)" --input-size $(SIZE)

bench-recipe: $(READY)  ## TRAIN, DATA: the paper's VGG recipe on a small VGG trained here, killed at every stage and resumed
	@test -n "$(TRAIN)" || { echo "bench-recipe needs TRAIN=folder/of/images, beside DATA" >&2; exit 2; }
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.network.recipe "$(TRAIN)" "$(DATA)"

bench-structures: $(READY)  ## PHOTOS if given: a small segmentation network, one for clips and a detector at half their operations (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m benchmarks.studies.network.structures $(if $(PHOTOS),--photographs "$(PHOTOS)")

bench-job: $(READY)  ## MODEL, DATA (ResNet-18 at 64 px), PHOTOS, MOBILENET: time and memory of whole jobs, in passes of the original (hours)
	@test -n "$(PHOTOS)" || { echo "bench-job needs PHOTOS=folder/of/photographs" >&2; exit 2; }
	OMP_NUM_THREADS=2 $(BIN)/python -W ignore -m benchmarks.studies.network.job --add --small "$(MODEL)" "$(DATA)" --photos "$(PHOTOS)" $(if $(MOBILENET),--mobilenet "$(MOBILENET)")

bench-memory-format: $(READY)  ## what images that lie channels last take beside channels first (a minute)
	OMP_NUM_THREADS=2 $(BIN)/python -W ignore -m benchmarks.studies.network.memory_format

bench-channels: $(READY)  ## MODEL, PHOTOS, OPERATIONS; SYNSETS; SIZE and TRAIN: hidden channels, low rank and torch-pruning at equal operations (an hour)
	@test -n "$(PHOTOS)" || { echo "bench-channels needs PHOTOS=folder/of/photographs" >&2; exit 2; }
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m benchmarks.studies.network.channels "$(MODEL)" "$(PHOTOS)" $(addprefix --operations ,$(OPERATIONS)) $(if $(SYNSETS),--synsets "$(SYNSETS)") $(if $(filter file,$(origin SIZE)),,--input-size $(SIZE)) $(if $(TRAIN),--train "$(TRAIN)") $(ARGS)

paper: $(READY)  ## RUNS (0:10 if not given): every table and figure of the paper, what is there already kept; then docs/paper.md (a night)
	@failed=; for part in $(PAPER_PARTS); do $(MAKE) --no-print-directory paper-$$part || failed="$$failed $$part"; done; \
	$(MAKE) --no-print-directory docs; test -z "$$failed" || { echo "not measured:$$failed" >&2; exit 1; }

paper-table1: $(READY)  ## the paper's Table 1: layers and weights of its networks
	$(PAPER).table1

paper-table2: $(READY)  ## MODEL, DATA, SIZE, ARGS: Table 2 and Fig. 1, random search, Fabolas and the paper's (hours)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	$(PAPER).table2 $(FC3_OR_OTHER)

paper-table3: $(READY)  ## Tables 3 and 4 on FC3, or MODEL, DATA, SIZE, ARGS: by the norm and by the error
	$(PAPER).table3 $(FC3_OR_OTHER)

paper-table5: $(READY)  ## Table 5 on a small VGG trained here, or TRAIN, DATA, ARGS="--model vgg16_bn.pth": stage by stage
	$(PAPER).table5 $(if $(TRAIN),"$(TRAIN)" "$(DATA)") $(ARGS)

paper-table6: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE, ARGS: Tables 6 and 7, Figs. 4 and 5, a sweep of gamma (hours)
	$(PAPER).table6 $(SUBJECT)

paper-norms: $(READY)  ## MODEL, DATA, SIZE, ARGS: Figs. 2 and 3, and the supplement's bound
	$(PAPER).norms $(FC3_OR_OTHER)

paper-samples: $(READY)  ## MODEL, DATA, SIZE, ARGS: why 50 images per evaluation
	$(PAPER).samples $(FC3_OR_OTHER)

paper-switches: $(READY)  ## MODEL, DATA, SIZE, ARGS: what each departure from the paper does
	$(PAPER).switches $(FC3_OR_OTHER)

bench: $(READY) $(if $(OWN),,$(FILES))  ## FILES="a.onnx b.onnx", or MODEL, DATA, SIZE, OUT: size, time, memory, operators side by side
	$(if $(OWN),test -e "$(OUT)/model.onnx" || $(MAKE) edge-cpu OUT="$(OUT)")
	$(BIN)/bocompress benchmark $(if $(OWN),"$(OUT)/original.onnx" "$(OUT)/model.onnx",$(FILES)) --provider $(PROVIDER) --profile --out $(BENCH)

bench-gpu: $(READY) $(TRAINED)  ## MODEL, DATA, SIZE, OUT: searched on CUDA for size and for time, timed there and on the CPU; says what is missing
	@$(BIN)/python -c 'import sys; from exporters.providers import explain_absence; sys.exit(explain_absence(["cuda"]))'
	$(FRESH)
	$(EXPORT) --device cuda $(ARGS)
	$(MAKE) --no-print-directory edge-fastest OUT="$(OUT)/fastest" ARGS='--device cuda --provider cuda $(ARGS)'
	$(MAKE) --no-print-directory bench PROVIDER=cpu,cuda FILES='$(OUT)/original.onnx $(OUT)/model.onnx $(OUT)/fastest/model.onnx' BENCH='$(OUT)/benchmark'

bench-harness: $(READY) $(FILES)  ## FILES: ten repeats of the benchmark beside torch.utils.benchmark
	$(BIN)/python -m benchmarks.studies.export.harness $(FILES)

clean:  ## remove the environment and the demo
	rm -rf $(VENV) demo build
