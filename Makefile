# Two commands matter to a newcomer: `make demo` and `make test`.  Both set up first.

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.set-up
# Without the built-in model's training stages (pyproject.toml), which run for hours elsewhere: 85 % was measured.
FLOOR  := 80

# When cores are shared, two threads are slower than one: threads spin while they wait for each other.
export OMP_WAIT_POLICY := PASSIVE
export HF_HUB_OFFLINE := 1

.DEFAULT_GOAL := help
.PHONY: help setup referee referee-small judges floors demo test test-slow check format world styles gallery foreign bench site docs serve browser clean

help:
	@echo "make demo       set up, then draw prompts x reference pictures with the built-in model into out/demo.png"
	@echo "make test       set up, then run the tests"
	@echo "make check      the one gate of a change: format, lint, types, layers, tests, coverage"
	@echo "make test-slow  the tests that take longer than a few seconds"
	@echo "make world      fetch and render the emoji drawings that training and evaluation need; needs npm"
	@echo "make styles     make the shipped style cards anew, for an image encoder that was trained on"
	@echo "make gallery    draw docs/gallery.md; make foreign draws docs/foreign.md"
	@echo "make referee    every method against the truth, into benchmarks/results/referee; make referee-small: a few minutes' worth"
	@echo "make floors     what the built-in model must reach, row by row, into its card; make judges trains the judges anew"
	@echo "make bench      side by side with diffusers; writes benchmarks/results/"
	@echo "make site       build the documentation into build/site; make docs serves it while you edit"
	@echo "make format     format the code"
	@echo "make serve      the studio: a page and an API at http://127.0.0.1:7860; make browser gets what its tests drive"

# torch first, so that nothing else chooses its build: a CPU build that pip knows of is kept.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; (3, 11) <= sys.version_info < (3, 14) or sys.exit("Python 3.11 to 3.13 is needed, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

setup: $(STAMP)

demo: setup
	$(BIN)/python examples/demo.py

# Two processes, a module's tests in one of them; each computes with one thread, as tests/conftest.py wants it.
WORKERS ?= 2
PYTEST   = $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope

test test-slow check: export OMP_NUM_THREADS := 1

test: setup
	$(PYTEST)

test-slow: setup
	$(PYTEST) -m slow

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports
	$(PYTEST) --cov --cov-report=term --cov-fail-under=$(FLOOR)

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

world: setup
	$(BIN)/python -m instantstyle.emoji

styles: setup
	$(BIN)/python -m instantstyle.emoji.build_style_cards

gallery: setup
	$(BIN)/python docs/gallery.py

foreign: setup
	$(BIN)/python docs/foreign.py

# Questions a cell: 36 are all there are; the committed report says how many it was made with, 12 take a third of the time.
COUNT ?= 36

referee: setup
	$(BIN)/instantstyle evaluate --jobs 2 --count $(COUNT) --out benchmarks/results/referee --pictures out/referee

referee-small: setup
	$(BIN)/instantstyle evaluate --jobs 2 --subset small --out out/referee-small

judges: setup
	$(BIN)/python -m instantstyle.evaluate.train_classifiers

floors: setup
	$(BIN)/python -m instantstyle.evaluate.acceptance --card --out benchmarks/results/floors.md

bench: setup
	$(BIN)/python benchmarks/run.py

site: setup
	$(BIN)/mkdocs build --strict

docs: setup
	$(BIN)/mkdocs serve

serve: setup
	$(BIN)/instantstyle serve

# For the browser tests: as root Debian's package; elsewhere any chromium or chrome on PATH, or STUDIO_BROWSER=/path.
browser:
	@command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null || [ -n "$$STUDIO_BROWSER" ] || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update -qq && apt-get install -y --no-install-recommends chromium; } || \
	  { echo "no browser: install chromium, or give STUDIO_BROWSER=/path/to/chrome; without one the browser tests are skipped" >&2; exit 1; }

clean:
	rm -rf $(VENV) out build dist .pytest_cache .ruff_cache .coverage src/*.egg-info
