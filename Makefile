# Everything happens inside the checkout: .venv/ and build/. See README.md.
PYTHON ?= python3
BIN := .venv/bin
# On Linux, pip's usual build of torch brings CUDA. TORCH=cpu takes the one without, from torch's own index.
TORCH_INDEX := $(if $(filter cpu,$(TORCH)),--extra-index-url https://download.pytorch.org/whl/cpu)

.PHONY: help demo test lint types imports unit oldest newest slow fuzz bench bench-slow gpu format proto requirements sbom clean

help:
	@echo "make demo    three private concepts, one round, one picture (build/demo/)"
	@echo "make test    lint, strict types, import directions, all tests"
	@echo "make oldest  a tour of the product on the oldest libraries that it declares"
	@echo "make newest  the same on the newest ones of today"
	@echo "make slow    the slow tests"
	@echo "make fuzz    an hour of damaged files for every reader (build/fuzz/); FUZZ_SECONDS=600 is shorter"
	@echo "make bench   speed and memory, side by side with the rivals (build/bench/, half an hour)"
	@echo "make bench-slow  the same at the real size of Stable Diffusion 1.5; on a GPU where there is one"
	@echo "make gpu     everything that needs a GPU, and training tiny on (build/gpu/); again: it continues"
	@echo "make requirements  pin and hash what a deployment installs (deploy/requirements*.txt)"
	@echo "make sbom    a bill of materials of the environment, in CycloneDX (build/sbom.json)"
	@echo "make format  rewrite the code in its one format"

.venv: pyproject.toml constraints.txt tests/evaluation/pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(TORCH_INDEX) \
		--editable '.[dev]' --editable tests/evaluation
	@touch .venv

demo: .venv
	$(BIN)/mos-bench demo --out build/demo

test: lint types imports unit

lint: .venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv
	$(BIN)/mypy

imports: .venv
	$(BIN)/lint-imports

unit: .venv
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

oldest newest: .venv
	$(BIN)/python tests/libraries/environment.py $@ build/libraries/$@
	build/libraries/$@/bin/python -m pytest --override-ini addopts= --override-ini filterwarnings= \
		--override-ini timeout= --import-mode=importlib tests/libraries

slow: .venv
	MOS_HYPOTHESIS=explore $(BIN)/python -m pytest -m "slow or hypothesis"

fuzz: .venv
	PYTHONPATH=tests OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz/run.py --seconds $(or $(FUZZ_SECONDS),3600)

bench: .venv
	for file in tests/bench/bench_*.py; do $(BIN)/python $$file || exit 1; done

bench-slow: .venv
	for file in tests/bench/slow/bench_*.py; do $(BIN)/python $$file || exit 1; done

gpu: .venv
	$(BIN)/python tests/bench/gpu.py

format: .venv
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# All but torch and what its builds for NVIDIA bring: which build is the operator's choice.
OF_TORCH := torch triton cuda-bindings cuda-pathfinder cuda-toolkit $(addprefix nvidia-,cublas cuda-cupti cuda-nvrtc \
	cuda-runtime cudnn-cu13 cufft cufile curand cusolver cusparse cusparselt-cu13 nccl-cu13 nvjitlink nvshmem-cu13 nvtx)

COMPILE := $(BIN)/uv pip compile pyproject.toml --constraint constraints.txt --universal --python-version 3.11 \
	--generate-hashes --no-header --no-annotate --quiet $(addprefix --no-emit-package ,$(OF_TORCH))

requirements: .venv
	echo hatchling | $(COMPILE) - --output-file deploy/requirements.txt
	$(COMPILE) --extra postgresql --extra s3 --extra traces --output-file deploy/requirements-server.txt \
		$$(sed -n 's/^\([A-Za-z0-9._-]*\)==.*/--no-emit-package \1/p' deploy/requirements.txt)

SBOM_OF ?= $(BIN)/python

sbom: .venv
	$(PYTHON) -m venv build/sbom
	build/sbom/bin/pip install --quiet --disable-pip-version-check cyclonedx-bom==7.5.0
	build/sbom/bin/cyclonedx-py environment $(SBOM_OF) --pyproject pyproject.toml --output-reproducible \
		--output-file build/sbom.json

proto: .venv
	$(BIN)/python -m grpc_tools.protoc -I common \
		--python_out=common --pyi_out=common --grpc_python_out=common common/mos_common/mos.proto

clean:
	rm -rf build .venv
