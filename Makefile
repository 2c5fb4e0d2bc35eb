# Plain pip and a .venv: pip picks the torch that suits the machine.
.DEFAULT_GOAL := help
SHELL := /bin/bash

# the first of these that is 3.11 or newer
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.setup-done
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
JOBS ?= $(shell n=$(CORES); [ $$n -gt 8 ] && n=8; echo $$n)
PYTEST_ARGS ?=
# the tested versions; none: make setup CONSTRAINTS=
CONSTRAINTS ?= constraints.txt
# the many processes of the suite compile no source that another has compiled
export PYTHONDONTWRITEBYTECODE =

.PHONY: help setup demo test nightly thorough numbers machines fuzz faults lint format new generate constraints docs dist conformance figures reproduce clean

help:  ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 22

setup: $(STAMP)  ## .venv with the package and every tool; again only after pyproject.toml or the tested versions changed

# a module is compiled when it is first imported: half of the time, since most never are
$(STAMP): pyproject.toml lab/pyproject.toml $(CONSTRAINTS)
	@[ -n "$(PYTHON)" ] || { echo "Python: got none of 3.11 or newer, want one. Install python3.11, or call: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile $(addprefix -c ,$(CONSTRAINTS)) -e ".[dev]" -e ./lab
	@touch $@

demo: setup  ## rates, training, the choice and the fold on real pictures; a table, a page, and what adapting gained
	$(BIN)/intarsia demo

test: setup  ## the suite: offline, CPU
	$(BIN)/python -m pytest -n $(JOBS) $(PYTEST_ARGS)

nightly: thorough numbers machines conformance fuzz faults  ## what CI leaves out for its time; hours

thorough: setup  ## the tests that `make test` leaves out for their time: processes that are killed, pages, all kinds, the first hour
	$(BIN)/python -m pytest -n $(JOBS) -m thorough

# what computes: bits are promised between equal runs on one machine, not between processors
NUMBERS := $(addprefix tests/,adapters formats gating kernels mixtures partitions routers schedules scores methods models areas senses train test_fitting.py)

# those that multiply; the others choose, store or schedule weights, which threads do not change
THREADED := $(filter-out $(addprefix tests/,formats gating partitions schedules scores),$(NUMBERS))

numbers: setup  ## the tests of what computes, as an older processor would, with one thread and two
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) $(NUMBERS)
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 OMP_NUM_THREADS=2 $(BIN)/python -m pytest -n $$(( ($(JOBS) + 1) / 2 )) $(THREADED)

# what a processor, a number of threads or a seed may turn: trainings, native numerics, the command line
TURNED := $(addprefix tests/,train runs methods routers models areas kernels cli test_fitting.py test_conftest.py \
	sparse hosts/test_union_of_experts.py lab/bench/test_rival_products.py)

machines: setup  ## those tests with one thread, and as a processor with AVX2, with another seed each
	OMP_NUM_THREADS=1 INTARSIA_TEST_SEED=1 $(BIN)/python -m pytest -n $(JOBS) $(TURNED)
	ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 INTARSIA_TEST_SEED=2 $(BIN)/python -m pytest -n $(JOBS) $(TURNED)

lint: setup  ## ruff, pyright, import-linter
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyright
	$(BIN)/lint-imports

format: setup  ## fix and format with ruff
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

new: setup  ## begin a method of any kind: make new KIND=router NAME=relu PAPER=2412.14711; without KIND it lists them
	@$(BIN)/python scripts/new_method.py "$(KIND)" "$(NAME)" "$(PAPER)" --title "$(TITLE)"

generate: setup  ## write the files that are generated from the methods' cards, and the pages of results
	$(BIN)/python -m intarsia_lab.cli.generating
	$(BIN)/python scripts/front_pages.py

constraints: setup  ## write constraints.txt: the versions in .venv, once the suite has passed with them
	$(BIN)/python scripts/constraints.py

docs: setup  ## build site/, warnings are errors
	$(BIN)/zensical build --clean --strict
	@echo '<meta http-equiv="refresh" content="0; url=results.html">' > site/claims.html    # the old address

dist: setup  ## a wheel and a source archive in dist/, checked
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/python -m build --outdir dist lab
	$(BIN)/twine check --strict dist/*

COUNT ?= 10000
SEED ?= 0

fuzz: setup  ## COUNT malformed files of every kind: how each is opened; CASE=index/17 one again
	PYTHONPATH=$(CURDIR) nice $(BIN)/python -m tests.fuzz --count $(COUNT) --seed $(SEED) $(if $(CASE),--case $(CASE))

faults: setup  ## plant each fault of tests/faults in a copy of the tree: which tests see it; SYSTEM=MoSA those of one; ANSWERS=file goes on where a run was cut off
	PYTHONPATH=$(CURDIR) nice $(BIN)/python -m tests.faults --jobs $(JOBS) $(if $(SYSTEM),--system "$(SYSTEM)") $(if $(ANSWERS),--answers "$(ANSWERS)")

conformance: setup  ## PEFT's own tests on every adapter; METHODS=lora,mosa on those
	PEFT_METHODS="$(METHODS)" PEFT_TESTS="$$($(BIN)/python scripts/peft_tests.py)" $(BIN)/python -m pytest -n $(JOBS) -c tests/peft_suite/pytest.ini tests/peft_suite $(PYTEST_ARGS)

figures: setup  ## README's and the areas' figures again on this machine, next to the pages': ONLY=recommend,speech those
	$(BIN)/python benchmarks/figures.py --only "$(ONLY)"

reproduce: setup  ## one paper's headline: make reproduce NAME=mosa
	@[ -n "$(NAME)" ] || { echo "reproduce: got no name, want one. Call: make reproduce NAME=mosa"; exit 1; }
	$(BIN)/intarsia reproduce $(NAME)

clean:  ## everything that can be made again, but .venv
	rm -rf site build dist .cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -type d -name __pycache__ -print0 | xargs -0 -r rm -rf
