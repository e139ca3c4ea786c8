# What a change passes before review: make check. PYTHON names another interpreter.
PYTHON ?= python
# Where `make record` writes; README shows it afterwards.
RECORD ?= bench/history/$(shell date +%F)-$(shell uname -m).json

.PHONY: check format lint types test bench record gpu-record

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

record:
	$(PYTHON) -m pytest bench --benchmark-only --benchmark-json=$(RECORD)
	$(PYTHON) -m bench.table $(RECORD) --readme
	$(PYTHON) -m bench.plot $(RECORD) docs/fbank.svg

# On a machine with a CUDA GPU: its tests, errors and times, in one JSON under bench/history.
gpu-record:
	$(PYTHON) -m bench.gpu_record
