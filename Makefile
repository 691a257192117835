# make run    the embedded cohort, from nothing     make lint      ruff and mypy
# make test   the fast tests                        make coverage  the fast tests, and the share of the code they reach
# make slow   the slow tests, in Chromium too       make bench     every benchmark, a JSON line each
# make .venv  the set-up alone                      make clean     removes what was made
#
# make test PACKAGE=survival   the tests of one package, or of one file: PACKAGE=tlstm. slow and coverage take it too.
PYTHON ?= python3
BIN := .venv/bin
PACKAGE :=
PACKAGES := $(patsubst %/__init__.py,%,$(wildcard */__init__.py))
TESTS = $(if $(PACKAGE),$(or $(wildcard tests/$(PACKAGE) tests/test_$(PACKAGE).py),$(error \
	PACKAGE: expected one of $(PACKAGES), or a program file's name without .py, received $(PACKAGE))))

.PHONY: .venv run test slow lint coverage bench clean

run: .venv
	$(BIN)/python main.py

test: .venv/developing
	$(BIN)/pytest -n 2 $(TESTS)

slow: .venv/developing
	command -v chromium || (apt-get update && apt-get install -y chromium chromium-driver)
	$(BIN)/pytest -m slow $(TESTS)

lint: .venv/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The table is printed whether the tests pass or not; the exit code is theirs.
coverage: .venv/developing
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest -n 2 $(TESTS); code=$$?; \
	$(BIN)/coverage combine --quiet && $(BIN)/python tests/coverage_table.py && exit $$code

bench: .venv/developing
	@test -f outputs/report.html || $(BIN)/python main.py >&2
	@for name in losses data stage1 tlstm explain; do $(BIN)/python benchmarks/$$name.py || exit 1; done

.venv: .venv/installed

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/developing: .venv/installed requirements-dev.txt
	$(BIN)/pip install --quiet -r requirements-dev.txt
	touch $@

clean:
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache .hypothesis .coverage .coverage.*
