# `make search` and `make test` set everything up by themselves; both are safe to repeat.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready

.PHONY: search sweep test long bench-quick check setup lock bundle cluster-test browser docs reference sbom audit help

search: $(READY)  ## run the main job on the default study
	$(BIN)/python -m raysense.search --resume

sweep: $(READY)  ## how quality answers to sparsity: components and blocks of the bundled pipeline, with a page
	$(BIN)/raysense sweep search/sweep.yaml --resume

test: $(READY) browser check  ## ruff, mypy and the tests
	$(BIN)/python -m pytest -m "not long"

long: $(READY) browser  ## what takes longer: soak tests, many kills
	$(BIN)/python -m pytest -m long --timeout 3600

bench-quick: $(READY)  ## does every benchmark still run? `--quick` of each
	$(BIN)/python -m benchmarks

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(MAKE) --no-print-directory docs

docs: $(READY)  ## the documentation as a site: docs/_build/index.html; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -d docs/_build/.doctrees docs docs/_build

browser:  # the page is tested in Chromium; nothing happens where there is one
	@command -v chromium >/dev/null || command -v chromium-browser >/dev/null || { \
		command -v apt-get >/dev/null || { echo "The tests need Chromium and there is no apt-get here: \
install Chromium so that \`chromium\` is found, then run again." >&2; exit 1; }; \
		root=""; [ "$$(id -u)" = 0 ] || root=sudo; \
		$$root apt-get update -qq && \
		$$root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

reference: $(READY)  ## run the committed reference study anew, and what is shown of it
	rm -rf reports/runs/reference reports/reference
	$(BIN)/python -m raysense.search reports/reference.yaml --out reports/runs/reference
	mkdir reports/reference
	cp -R reports/runs/reference/study.json reports/runs/reference/manifest.json \
		reports/runs/reference/summary.json reports/runs/reference/tables reports/reference/
	$(BIN)/python -m raysense.results.query_answers reports/reference reports/queries > reports/queries/README.md
	$(BIN)/jupyter-execute --inplace reports/analysis.ipynb

setup: $(READY)  ## only install

$(READY): requirements.lock requirements-uv.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-uv.lock
	# Compiled once here, not by each of Ray's processes: where nothing may write bytecode, each import costs seconds.
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -r requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	touch $(READY)

lock:  ## pin what is tested, anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header \
		--generate-hashes --group dev pyproject.toml --output-file requirements.lock
	grep -o '^uv==[^ ]*' requirements-uv.lock | $(BIN)/uv pip compile --quiet --universal --python-version 3.11 \
		--no-emit-index-url --no-header --no-annotate --generate-hashes - --output-file requirements-uv.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-emit-index-url --no-header --no-annotate \
		--extra cluster --constraint requirements.lock pyproject.toml --output-file deploy/cluster.lock

sbom: $(READY)  ## dist/sbom.json: what is pinned, as a CycloneDX bill of materials
	mkdir -p dist
	$(BIN)/cyclonedx-py requirements requirements.lock --output-reproducible --of JSON -o dist/sbom.json

audit: $(READY)  ## known weaknesses of what is pinned; asks the Python Package Index, and fails where it does not answer
	$(BIN)/pip-audit --requirement requirements.lock --require-hashes --disable-pip --strict

bundle: $(READY)  ## dist/cluster: what `ray up` copies to every node, the same wheel for all
	rm -rf dist/cluster
	$(BIN)/uv build --quiet --wheel --out-dir dist/cluster
	rm -f dist/cluster/.gitignore
	cp -R deploy/cluster.lock search dist/cluster/

cluster-test: $(READY) bundle  ## a real `ray up` on this machine, then autoscaling from zero and back (Linux, root)
	$(BIN)/python -m tests.deploy.rehearsal
	$(BIN)/python -m tests.deploy.autoscaling

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*## /\t/'
