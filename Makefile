# `make quickstart` and `make test` are the two commands; both make .venv themselves.
PYTHON ?= python3
VENV ?= .venv
# a third of the time tests wait, for servers and for processes that they have killed
TEST_WORKERS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); echo $$((n < 8 ? n + 1 : 8)))
BIN := $(VENV)/bin
export DO_NOT_TRACK := 1
export PREFECT_SERVER_ANALYTICS_ENABLED := false

.PHONY: quickstart sweep-demo test test-slow install lint format docs notebook clean

quickstart: $(VENV)/.installed
	$(BIN)/feeb run experiments/quickstart.yaml --jobs 2

# a scaling law from a budget and a target: about twenty minutes on two cores
sweep-demo: $(VENV)/.installed
	$(BIN)/feeb sweep run experiments/sweep-small.yaml --budget 4.5e13 --target 1.5e14 --jobs 2

install: $(VENV)/.installed

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder --durations 20

# all but the tests marked slow. mypy needs a minute of one core: it runs at the same time as the tests, and says what it found after them
test: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	@mkdir -p .mypy_cache; $(BIN)/mypy >.mypy_cache/output.txt 2>&1 & mypy=$$!; \
	echo "$(PYTEST) -m 'not slow'"; \
	$(PYTEST) -m "not slow"; pytest=$$?; \
	wait $$mypy; mypy=$$?; echo "$(BIN)/mypy"; cat .mypy_cache/output.txt; \
	test $$pytest -eq 0 && test $$mypy -eq 0

# kills, servers, several processes, whole packages: as many minutes again
test-slow: $(VENV)/.installed-dev
	$(PYTEST) -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/.installed-dev
	$(BIN)/python docs/make_reference.py

# the pages of the notebook's families and comparisons at quick scale; an hour on two cores
notebook: $(VENV)/.installed
	for family in a b c d; do \
	  $(BIN)/feeb run experiments/notebook-$$family.yaml --quick --jobs 2 || exit 1; \
	  made=$$(ls -dt data/claims/notebook-$$family-quick-* | head -1); \
	  mkdir -p docs/notebook/notebook-$$family; \
	  cp $$made/page.md $$made/figure.png $$made/curves.png docs/notebook/notebook-$$family/ || exit 1; \
	done
	for pair in k-heads:flops byte-patches:flops all-layer:time; do \
	  name=$${pair%:*}; \
	  $(BIN)/feeb compare experiments/$$name.yaml --quick --budget $${pair#*:} || exit 1; \
	  made=$$(ls -dt data/compare/$$name-quick-* | head -1); \
	  mkdir -p docs/notebook/$$name; \
	  cp $$made/page.md $$made/figure.png docs/notebook/$$name/ || exit 1; \
	done

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "feeb needs Python 3.11 or newer; name one with: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Python compiles what it imports anyway: for pip to compile all of it takes a minute and a half
PIP := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt

$(VENV)/.installed: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.made pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	@touch $(VENV)/.installed $@

clean:
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache
