# The one place of the check commands: `make check` is what CI runs, `make lint types` what a commit must pass.

PYTHON := .venv/bin/python
NATIVE := tests/test_native_sampler.py tests/test_fused.py tests/test_native_core.py

.PHONY: check test instructions sanitizers symbols lint types pages release

check: test instructions sanitizers symbols lint types

test: # the README's own command, which makes .venv
	@command=$$(awk '/^## Test$$/ { on = 1 } on && /pytest/ { print; exit }' README.md); \
	echo "+ $$command"; eval "$$command"

instructions: # the compiled core as machines without AVX-512, and without AVX2, run it
	CAUSAL_CIRCUITS_KERNELS=avx2 $(PYTHON) -m pytest -q $(NATIVE)
	CAUSAL_CIRCUITS_KERNELS=baseline $(PYTHON) -m pytest -q $(NATIVE)

sanitizers symbols:
	$(PYTHON) tests/native/check_native.py $@

.venv/bin/ruff .venv/bin/mypy: pyproject.toml constraints.txt
	test -d .venv || python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch .venv/bin/ruff .venv/bin/mypy

lint: .venv/bin/ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/bin/mypy
	.venv/bin/mypy

pages: # style sheets and scripts of pages; needs Node
	npx --yes prettier@3 --print-width 120 --check causal_circuits/pages/*.css causal_circuits/pages/*.js

release: # installs the newest, the oldest and the fewest dependencies: some 15 minutes
	$(PYTHON) tests/packaging/check_install.py
