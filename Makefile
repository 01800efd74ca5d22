# Each target creates the virtual environment, if it is missing, and runs in it.
PYTHON ?= python3
BIN := .venv/bin
# With a GPU: make test JAX=jax[cuda13]
JAX ?= jax

.PHONY: demo test test-slow test-release bounded lint docs clean

demo: .venv/installed
	$(BIN)/vit demo

# Two processes with one thread each, because models are small and more threads would only wait. Programs that JAX
# compiled are kept for later calls; `make clean` removes them.
PYTEST := OMP_NUM_THREADS=1 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.venv/compiled $(BIN)/python -m pytest -n 2 --dist worksteal
# Less optimization, for tests only: it changes rounding, not the computation. With LLVM's optimizations and XLA's
# fusion emitters, which are on for users, compiling takes four to five times as long.
QUICK := XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
	--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# If it were set, each of the many processes that tests start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

# Limit of the cache of compiled programs, which is emptied above it. One version of the code needs about 50 MiB. JAX's
# own limit (JAX_COMPILATION_CACHE_MAX_SIZE) is not used: it reads the whole folder for each new program (0.4 s for
# 3,600).
COMPILED_MIB := 1024
bounded: .venv/installed
	@mkdir -p .venv/compiled
	@test $$(du -sk .venv/compiled | cut -f1) -le $$(($(COMPILED_MIB) * 1024)) || find .venv/compiled -type f -delete

# To run the slow tests too, in one session that imports the libraries once: make test TESTS="not release"
TESTS ?= not slow and not release

test: bounded
	$(QUICK) $(PYTEST) -m "$(TESTS)"

test-slow: bounded
	$(QUICK) $(PYTEST) -m slow

# Before a release: all tests, with four times as many random examples, and programs compiled as for users.
test-release: bounded
	$(PYTEST) --hypothesis-profile=release -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# strict: a dead link or an unknown name is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# --no-compile: Python later compiles only the modules that it imports, a fifth of the installed ones.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]' '$(JAX)' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv runs
