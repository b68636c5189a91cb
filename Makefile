# The only commands to know. Each one makes .venv from the lock on a fresh machine.
PYTHON ?= python3
PIP := .venv/bin/pip --disable-pip-version-check
RUNS ?= runs

.PHONY: demo test test-all lint bench lock clean

demo: .venv/ready
	.venv/bin/aloe run recipes/starter.yaml --runs $(RUNS)/demo

test: .venv/ready
	.venv/bin/pytest

test-all: .venv/ready .bench/trl/ready .bench/deepspeed/ready .bench/mergekit/ready .bench/lmeval/ready
	ALOE_DATA=$${ALOE_DATA:-$(abspath ../shared/data)} .venv/bin/pytest -m "slow or not slow"
	.bench/deepspeed/bin/python -m pytest -m "slow or not slow" -k zero3 tests/train tests/spine/test_launch.py

lint: .venv/ready
	.venv/bin/ruff check .
	.venv/bin/mypy
	.venv/bin/lint-imports

# One claim (make bench BENCH=merge) or all of them; each peer has a venv of its own.
BENCH ?= sft dpo tokenise merge retrieve ask evals curate
PEER_merge := mergekit
PEER_retrieve := chroma
PEER_http_medprompt := llamacpp
PEER_evals := lmeval
PEER_curate := datatrove
bench: .venv/ready $(foreach name,$(BENCH),.bench/$(or $(PEER_$(name)),trl)/ready)
	@for name in $(BENCH); do .venv/bin/python benchmarks/$$name.py || exit 1; done

.bench/%/ready: requirements/bench-%.txt
	$(PYTHON) -m venv --clear .bench/$*
	.bench/$*/bin/pip install --quiet --no-deps -r requirements/torch-cpu.txt || .bench/$*/bin/pip install --quiet torch==2.13.0
	.bench/$*/bin/pip install --quiet --no-deps -r $<
	touch $@

# --no-deps: the lists are complete. torch is the CPU build where pip finds one, otherwise the public build, whose Linux
# wheel needs the CUDA libraries of cuda.txt.
INSTALL := $(PIP) install --quiet --no-deps --require-hashes -r

.venv/ready: $(wildcard requirements/*.txt) pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed (make PYTHON=python3.11)"; exit 2; }
	$(PYTHON) -m venv --clear .venv
	$(INSTALL) requirements/torch-cpu.txt 2>/dev/null || { $(INSTALL) requirements/torch.txt && \
	  if [ "$$(uname -s)" = Linux ]; then $(INSTALL) requirements/cuda.txt; fi; }
	$(INSTALL) requirements/lock.txt
	$(PIP) install --quiet --no-deps --no-build-isolation -e .
	.venv/bin/python -c 'import torch, transformers, aloe'
	touch $@

# DeepSpeed is built from source and is no part of the two README commands: the tests of engine zero3 have a venv of their own.
.bench/deepspeed/ready: requirements/lock.txt requirements/bench-deepspeed.txt
	$(PYTHON) -m venv --clear .bench/deepspeed
	.bench/deepspeed/bin/pip install --quiet --no-deps -r requirements/torch-cpu.txt || .bench/deepspeed/bin/pip install --quiet torch==2.13.0
	.bench/deepspeed/bin/pip install --quiet --no-deps -r requirements/lock.txt
	DS_BUILD_OPS=0 .bench/deepspeed/bin/pip install --quiet --no-deps -r requirements/bench-deepspeed.txt
	.bench/deepspeed/bin/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

# The real llama.cpp server of benchmarks/http_medprompt.py: compiled from source, which takes minutes and needs cmake and a C++ compiler.
.bench/llamacpp/ready: requirements/bench-llamacpp.txt
	$(PYTHON) -m venv --clear .bench/llamacpp
	.bench/llamacpp/bin/pip install --quiet --no-deps -r $<
	touch $@

lock:
	$(PYTHON) requirements/lock.py

clean:
	rm -rf .venv .bench build src/*.egg-info .pytest_cache .mypy_cache .ruff_cache
