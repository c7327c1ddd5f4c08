# `make demo` and `make test` each set up what they need, in one .venv with the package installed editable.
PYTHON ?= python3
BIN := .venv/bin
PIP_FLAGS ?= $(if $(CI),--constraint constraints.txt)

.PHONY: demo test docs wasm browser setup clean

demo: .venv/demo
	rm -rf runs/demo
	$(BIN)/mobilenets fit digits --max-latency-ms 1 --max-size-mb 0.5 --out runs/demo

test: .venv/installed
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/pytest

# The documentation as a site, in site/; `make docs SERVE=1` serves it while it is written.
docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs $(if $(SERVE),serve,build --strict)

.venv/docs: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[docs]'
	touch $@

# The engine for browsers, into the package: see web/build.py.
wasm: .venv/installed
	$(BIN)/pip install --quiet --disable-pip-version-check ziglang==$(shell sed -n 's/^COMPILER = "\(.*\)"/\1/p' web/build.py)
	$(BIN)/python web/build.py

# What drives the pages' tests: Debian's Chromium, and of npm TypeScript and axe-core. Nothing, where they are there.
NODE_TOOLS := typescript@5.9.3 axe-core@4.14.1
browser:
	@if command -v chromium || command -v chromium-browser || command -v google-chrome; then :; \
	elif ! command -v apt-get >/dev/null; then echo "no apt-get here: install Chromium by hand" >&2; exit 1; \
	elif [ "$$(id -u)" != 0 ]; then echo "installing Chromium takes root: sudo apt-get install chromium" >&2; exit 1; \
	else apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends chromium; fi
	@if ! command -v npm >/dev/null; then echo "no npm: the pages' types and their accessibility aren't tested" >&2; \
	elif ! [ -d .venv/node/node_modules/axe-core ]; then npm install --silent --no-audit --no-fund --prefix .venv/node $(NODE_TOOLS); fi

setup: .venv/installed

.venv/demo: EXTRA = train
.venv/installed: EXTRA = dev
.venv/demo .venv/installed: pyproject.toml setup.py $(wildcard native/*/*.[ch] native/src/kernels/*.[ch])
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check $(PIP_FLAGS) --editable '.[$(EXTRA)]'
	touch $@

clean:
	rm -rf .venv runs site
