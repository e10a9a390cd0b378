# make demo   set up, train focal, DR and DR+ on generated data, write demo/report.html
# make test   set up, run the tests
# make check  ruff and mypy        make slow  the slow tests          make bench  benchmarks
# make soak   the long form of the tests of reliability: what docs/reliability.md promises
# make hosts  install the adapters' hosts beside it, and run their tests
# make release-check  build sdist and wheel, check them, install and try the wheel in bare environments
# make docs   check that README and docs say what is true, and build the site in build/site
# make docs-serve   the site at http://127.0.0.1:8000, built again whenever a page changes
# make clean  remove what was made, but for .venv

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUT ?= demo
# Which files of tests make test runs: all by default.
TESTS ?=
# Which of the slow tests, as for pytest's -k: all by default.
SLOW ?=
# One job more than cores: many tests wait for other processes.
JOBS ?= $(shell echo $$(($$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN) + 1)))

# What make release-check installs the wheel with, one after the other; the adapters' hosts are extras, too.
EXTRAS ?= detector laptop onnx

.PHONY: setup demo test slow soak hosts check format bench docs docs-serve release-check clean
.DEFAULT_GOAL := test

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "drloss needs Python 3.11 or later, this is " + sys.version.split()[0] + "; name another with make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

demo: setup
	$(BIN)/drloss demo --out $(OUT)

test: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(TESTS)

slow: setup
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m slow --slow -k "$(SLOW)"

soak: setup
	$(BIN)/python -m pytest -m soak --soak -n $(JOBS) --figures=build/reliability.json

hosts: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[transformers,effdet,ultralytics,mmdet,monai,libreyolo]' six
	$(BIN)/python -m pytest -n $(JOBS) tests/adapters -rs

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup
	$(BIN)/python -m benchmarks.loss

clean:
	rm -rf $(OUT) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis src/*.egg-info

docs: setup
	$(BIN)/python -m pytest README.md docs/your_loop.md docs/using.md tests/test_docs.py tests/test_equations.py src
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

docs-serve: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs serve

# Needs no set-up: it makes every environment that it uses. About 8 GB in build/release, most of it torch.
release-check:
	$(PYTHON) -m venv build/release/tools
	build/release/tools/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/release/tools/bin/python tools/release_check.py $(EXTRAS)
