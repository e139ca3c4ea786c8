# What a change passes before review: make check. PYTHON names another interpreter.
PYTHON ?= python
# Processes that share the tests; each takes about 1.5 GB.
JOBS ?= 2
# Where `make record` writes: named by vectors, first cache and cores, as in 2026-11-29-epyc-avx2-l1d32-2core.
# docs/ shows it once bench/page.py names it and `make pages` has run.
RECORD ?= bench/history/$(shell date +%F)-$(shell $(PYTHON) -m bench.machine).json
# What `make record` runs, and pytest's options: RECORDED=bench/bench_fbank.py OPTIONS='-k 2-threads'.
RECORDED ?= bench
OPTIONS ?=

.PHONY: check format lint types test bench record pages docs gpu-record

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
	$(PYTHON) -m pytest -n $(JOBS)

bench:
	$(PYTHON) -m pytest bench --benchmark-only

record:
	$(PYTHON) -m pytest $(RECORDED) --benchmark-only $(OPTIONS) --benchmark-json=$(RECORD)

# The pages of docs/ that are made from records, and the picture of the filterbank's.
FBANK ?= $(shell $(PYTHON) -c 'from bench.page import RECORDS; print(RECORDS["fbank"])')
pages:
	$(PYTHON) -m bench.page
	$(PYTHON) -m bench.plot $(FBANK) docs/fbank.svg
	$(PYTHON) docs/settings.py

docs:
	$(PYTHON) -m mkdocs build --strict

# On a machine with a CUDA GPU: its tests, errors and times, in one JSON under bench/history, in ten
# minutes. It needs the kernels with Triton alone. OPTIONS='--commit v0.5.0' where git is missing.
gpu-record:
	$(PYTHON) -m bench.gpu_record $(OPTIONS)
