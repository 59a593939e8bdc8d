# Two commands matter: `make book` and `make test`. `make help` lists the rest.
# Every path is relative and no target is named after the folder we are in, so that the folder may hold spaces.

PYTHON ?= python3
PY := .venv/bin/python
export PYTHONDONTWRITEBYTECODE ?= 1
export PIP_DISABLE_PIP_VERSION_CHECK := 1
unexport PYTHONPATH
unexport VIRTUAL_ENV

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help book test lint unit kernels notebooks pages results claims bench matrix chapter serve offline wheel release-check repo clean distclean \
        reading everything mutants

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z%-]+:.*## / { sub("%", "<name>", $$1); printf "  make %-15s %s\n", $$1, $$2 }' Makefile

book: reading ## build the site (installs only what reading needs), print the path to open
	@$(PY) tools/book.py

test: everything ## install all, then lint, unit, kernels, notebooks, results, pages; a summary at the end
	@$(PY) tools/check.py lint unit kernels notebooks results pages

lint: everything ## ruff and mypy
	@$(PY) tools/check.py lint

unit: everything ## unit and property tests
	@$(PY) tools/check.py unit

kernels: everything ## Triton in the interpreter, and compiled ahead of time for three targets (build/kernels.json)
	@$(PY) tools/check.py kernels

notebooks: everything ## every notebook, executed again and compared
	@$(PY) tools/check.py notebooks

results: everything ## build/claims.json and build/bench.json (quick sizes), checked against their schemas
	@$(PY) tools/check.py results

pages: everything ## the built pages in a real headless Chromium
	@$(PY) tools/check.py pages

chapter: everything ## NAME=gla: execute the notebook, normalise it, rebuild its page
	@test -n "$(NAME)" || { echo "which one? for example: make chapter NAME=gla"; exit 2; }
	@$(PY) tools/notebooks.py "book/$(NAME).ipynb"
	@$(PY) tools/book.py

results-%: everything ## results-gla: make the chapter's stored results again (long), then its page
	@GATED_FULL=1 $(PY) tools/notebooks.py --timeout 0 "book/$*.ipynb"
	@$(PY) tools/notebooks.py "book/$*.ipynb"

gpu-%: everything ## gpu-gla: time the chapter's kernels on this machine's GPU, and keep the figures
	@GATED_FULL=gpu $(PY) tools/notebooks.py --timeout 0 "book/$*.ipynb"

claims: everything ## collect the claims of the executed notebooks into build/claims.json
	@$(PY) tools/claims.py

bench: everything ## full-size timing beside the peers into reports/bench.json (a quiet machine; NAME=gla: one chapter)
	@$(PY) tools/bench.py --store $(NAME)

mutants: everything ## change the code of gates and kernels, a thing at a time: do tests notice? (hours; GROUP=gla: a part)
	@$(PY) tools/mutants.py $(if $(GROUP),"$(GROUP)")

serve: book ## build, then serve the pages on this machine (PORT=8000)
	@echo "serving on http://127.0.0.1:$(or $(PORT),8000) (Ctrl-C ends it)"
	@$(PY) -m http.server --bind 127.0.0.1 --directory _build/html $(or $(PORT),8000)

matrix: everything ## the unit tests on other versions, processors, places, orders: reports/matrix.json (SUITE=quick|unit|all)
	@$(PY) tools/matrix.py --suite $(or $(SUITE),quick)

offline: everything ## the book to take along: dist/gated-book-<version>.zip (open it from a disk) and .pdf
	@$(PY) tools/offline.py

wheel: everything ## build dist/gated-*.whl
	@$(PY) -m build --no-isolation --wheel --outdir dist . > /dev/null && ls dist/*.whl

release-check: everything ## builds alike, quick to import, extras that pip resolves: reports/package.json (needs a network)
	@$(PY) tools/release.py

repo: everything ## URL=https://github.com/you/gated: write the repository's address everywhere it stands
	@$(PY) tools/repo.py "$(URL)"

clean: ## remove what is built (keeps .venv and vendor, so no network is needed afterwards)
	@rm -rf _build build dist book/api .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## remove .venv and vendor too
	@rm -rf .venv vendor

reading:
	@$(PYTHON) tools/environment.py book

everything:
	@$(PYTHON) tools/environment.py test
