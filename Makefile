# Each target makes the virtual environment it needs and runs in it.
PYTHON ?= python3
BIN := .venv/bin
# With a GPU: make test JAX=jax[cuda13]
JAX ?= jax

.PHONY: demo test test-slow test-release bounded lint docs clean

demo: .venv/installed
	$(BIN)/vit demo

# Two processes of one thread each: many small models, and idle threads would spin. What JAX compiled is kept for the next
# time; `make clean` throws it away.
PYTEST := OMP_NUM_THREADS=1 JAX_COMPILATION_CACHE_DIR=$(CURDIR)/.venv/compiled $(BIN)/python -m pytest -n 2 --dist worksteal
# How code is generated changes what is rounded, not what is computed. With LLVM's optimizations and XLA's fusion emitters,
# which users have, compiling takes four to five times as long.
QUICK := XLA_FLAGS="$(XLA_FLAGS) --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true \
	--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
# Where it is set, each of the many processes that tests start would compile every module again.
unexport PYTHONDONTWRITEBYTECODE

# One version of the code fills some 50 MiB; beyond the limit, all is compiled again. JAX's own limit
# (JAX_COMPILATION_CACHE_MAX_SIZE) would read the whole folder for each program that is added: 0.4 s with 3,600 of them.
COMPILED_MIB := 1024
bounded: .venv/installed
	@mkdir -p .venv/compiled
	@test $$(du -sk .venv/compiled | cut -f1) -le $$(($(COMPILED_MIB) * 1024)) || find .venv/compiled -type f -delete

# All but those before a release, in one session that imports the libraries once: make test TESTS="not release"
TESTS ?= not slow and not release

test: bounded
	$(QUICK) $(PYTEST) -m "$(TESTS)"

test-slow: bounded
	$(QUICK) $(PYTEST) -m slow

# Before a release: all tests, four times as many random examples, programs compiled as users compile them.
test-release: bounded
	$(PYTEST) --hypothesis-profile=release -m ""

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strictly: a dead link or an unknown name is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Python compiles what it imports, which is a fifth of what is installed.
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[test]' '$(JAX)' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv runs
