# Each target makes the virtual environment it needs and runs in it.
PYTHON ?= python3
BIN := .venv/bin
# With a GPU: make test JAX=jax[cuda13]
JAX ?= jax

.PHONY: demo test test-slow lint docs clean

demo: .venv/installed
	$(BIN)/vit demo

# Two processes of one thread each: many small models, and idle threads would spin.
test: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

test-slow: .venv/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal -m slow

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Strictly: a dead link or an unknown name is an error.
docs: .venv/installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[test]' '$(JAX)' --constraint constraints.txt
	touch $@

clean:
	rm -rf .venv runs
