# make run    the embedded cohort, from nothing     make lint   ruff and mypy
# make test   the fast tests                        make bench  every benchmark, a JSON line each
# make slow   the slow tests, in Chromium too       make clean  removes what was made
PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv run test slow lint bench clean

run: .venv
	$(BIN)/python main.py

test: .venv/developing
	$(BIN)/pytest -n 2

slow: .venv/developing
	command -v chromium || (apt-get update && apt-get install -y chromium chromium-driver)
	$(BIN)/pytest -m slow

lint: .venv/developing
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy *.py benchmarks

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
	rm -rf .venv outputs .pytest_cache .mypy_cache .ruff_cache
