# `make demo` and `make test` need git, make and Python only: they build .venv from setup.py, pyproject.toml and
# constraints.txt first. PYTHON names the interpreter it is built with; ARGS is passed on to the command.

PYTHON ?= python3
JOBS   ?= 2
ARGS   ?=
PART   ?= 0/24
MARKS  ?= not slow and not gpu

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/ready

# One OpenMP thread a worker: JOBS workers with a thread per core each would only get in each other's way.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal -m "$(MARKS)"

# Triton reads this at import, so that its interpreter and its compiler cannot share a process: one lane each.
unexport TRITON_INTERPRET
LANES := lint plain interpreter audit emulator

.PHONY: help demo test test-full $(LANES) style types layers bench rivals mutants gpu clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

demo: export OMP_WAIT_POLICY ?= passive
demo: $(READY) ## learn and sample handwritten digits and a mixture; pictures in out/
	$(BIN)/fastscore demo $(ARGS)

test: ## lint and every test that is quick, in all lanes
	@$(MAKE) --no-print-directory --keep-going $(LANES)

test-full: ## the same with the slow tests
	@$(MAKE) --no-print-directory --keep-going $(LANES) MARKS="not gpu" PART=0/1

lint: style types layers ## ruff, mypy, import-linter

style: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY)
	$(BIN)/mypy

layers: $(READY)
	$(BIN)/lint-imports

plain: $(READY) ## lane 1: everything that needs no Triton
	$(PYTEST) tests --ignore=tests/kernels --ignore=tests/audit $(ARGS)

interpreter: $(READY) ## lane 2: the kernels, in Triton's interpreter
	TRITON_INTERPRET=1 $(PYTEST) tests/kernels $(ARGS)

audit: $(READY) ## lane 3: the kernels, compiled ahead of time for GPUs that need not be there
	$(PYTEST) tests/audit $(ARGS)
	$(BIN)/python -m bench.roofline

emulator: $(READY) ## lane 4: the kernels compiled, and run in an emulator; of the tests the k-th of n parts, PART=k/n
	EMULATE=90 SHARD=$(PART) $(PYTEST) tests/kernels $(ARGS)

mutants: $(READY) ## break one line at a time, and see that a test fails
	$(BIN)/python tests/mutants.py $(ARGS)

bench: $(READY) ## measure against plain PyTorch, and against the rivals if they are there, on this machine
	$(BIN)/python -m bench $(ARGS)

rivals: $(READY) ## JAX, torchebm, blackjax, folx, jet-for-pytorch and curvlinops, in an environment of their own, for the benchmark
	$(BIN)/python -m bench.rivals $(ARGS)

# A GPU machine often has its own PyTorch and no network, so this uses PYTHON as it is, from the bare checkout. Its
# versions are not the pinned ones: their warnings are shown (-W default), not raised. Compiling the kernels is most of
# the tests' time, so that as many processes as there are cores, SHARDS at the most, take their part of them each (5: of
# nothing). What the tests leave of SECONDS is the benchmark's. Everything is written to DEST, if $OUT names a folder
# there.
DEST    ?= $(or $(OUT),bench/results)
SHARDS  ?= 16
SECONDS ?= 460

gpu: export PYTHONPATH := .:kernels
gpu: ## the kernel tests, then the benchmark, on a GPU, with the machine's own Python
	@$(PYTHON) -c 'import pytest' || { echo 'make gpu: $(PYTHON) has no pytest; install it, or name another PYTHON=' >&2; exit 1; }
	@$(PYTHON) -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' \
		|| { echo 'make gpu: torch of $(PYTHON) sees no CUDA device' >&2; exit 1; }
	@mkdir -p '$(DEST)'; begun=$$(date +%s); failed=0; ran=0; k=0; pids=; \
	n=$$(getconf _NPROCESSORS_ONLN); [ "$$n" -le $(SHARDS) ] || n=$(SHARDS); \
	while [ $$k -lt $$n ]; do \
		SHARD=$$k/$$n timeout -k 10 270 $(PYTHON) -m pytest -q -W default -m "not slow" -p no:cacheprovider \
			-o faulthandler_timeout=60 --junitxml='$(DEST)'/gpu-tests-$$k.xml tests/kernels $(ARGS) \
			> '$(DEST)'/gpu-tests-$$k.log 2>&1 & \
		pids="$$pids $$!"; k=$$((k + 1)); \
	done; k=0; \
	for pid in $$pids; do \
		wait $$pid; status=$$?; \
		case $$status in 0) ran=1;; 5) ;; *) failed=1;; esac; \
		echo "gpu-tests-$$k: status $$status, $$(tail -n 1 '$(DEST)'/gpu-tests-$$k.log)"; k=$$((k + 1)); \
	done; \
	[ $$ran = 1 ] || failed=1; \
	left=$$(($(SECONDS) - $$(date +%s) + begun)); echo "tests: failed=$$failed; $$left s for the benchmark"; \
	timeout -k 10 $$left $(PYTHON) -m bench --device cuda --budget $$((left - 20)) --out '$(DEST)'/cuda.json || failed=1; \
	exit $$failed

clean: ## remove .venv and everything built or cached here
	rm -rf $(VENV) build dist out *.egg-info .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis \
		.import_linter_cache .benchmarks
	find fastscore kernels tests bench -name __pycache__ -prune -exec rm -rf {} +

# READY is written last, so that an interrupted build is taken up again; an environment that has a working pip is kept
# and brought up to date. torch goes first and on its own: it is most of the download.
$(READY): setup.py pyproject.toml constraints.txt
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -c constraints.txt setuptools torch
	$(BIN)/python -m pip install -c constraints.txt --no-build-isolation -e '.[demo,test,bench,dev]'
	@touch $@
