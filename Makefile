# What a change passes before review: make check. PYTHON names another interpreter.
PYTHON ?= python

.PHONY: check format lint types test bench

check: lint types test

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

lint:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .

types:
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest

bench:
	$(PYTHON) -m pytest bench --benchmark-only
