# The one place of the check commands: `make check` is what CI runs, `make lint types` what a commit must pass.

PYTHON := .venv/bin/python
PURELIB := import sysconfig; print(sysconfig.get_path('purelib'))
ANY_MODEL := $(wildcard tests/test_hooked.py tests/test_models.py tests/test_attachments.py tests/test_heads.py \
	tests/test_interventions.py tests/test_training.py tests/test_equivalence.py \
	tests/test_transformer_lens_tools.py tests/test_circuits_by_hooks.py)
NATIVE := tests/test_native_sampler.py tests/test_fused.py tests/test_native_core.py

.PHONY: check test test-3.9 instructions sanitizers symbols lint types docs pages cluster release

check: test test-3.9
	$(MAKE) -j 2 instructions sanitizers symbols lint types # each of these takes one core

test: # the README's own command, which makes .venv
	@command=$$(awk '/^## Test$$/ { on = 1 } on && /pytest/ { print; exit }' README.md); \
	echo "+ $$command"; eval "$$command"

.venv-3.9: constraints-3.9.txt # TransformerLens 3.9 over the packages of .venv
	python3 -m venv $@
	$@/bin/pip install -q --no-deps -r constraints-3.9.txt
	echo "import site; site.addsitedir('$$($(PYTHON) -c "$(PURELIB)")')" > "$$($@/bin/python -c "$(PURELIB)")/shared.pth"
	touch $@

test-3.9: .venv-3.9 # what works on models, with the other line of TransformerLens
	.venv-3.9/bin/python -m pytest -q -n auto --dist loadfile $(ANY_MODEL) \
		tests/test_study_induction_head.py::test_results_hold_every_promised_key
	rm -rf out/versions
	$(PYTHON) tests/packaging/check_versions.py write out/versions/4
	.venv-3.9/bin/python tests/packaging/check_versions.py read out/versions/4
	.venv-3.9/bin/python tests/packaging/check_versions.py write out/versions/3.9
	$(PYTHON) tests/packaging/check_versions.py read out/versions/3.9

instructions: # the compiled core as machines without AVX-512, and without AVX2, run it
	CAUSAL_CIRCUITS_KERNELS=avx2 $(PYTHON) -m pytest -q $(NATIVE)
	CAUSAL_CIRCUITS_KERNELS=baseline $(PYTHON) -m pytest -q $(NATIVE)

sanitizers symbols:
	$(PYTHON) tests/native/check_native.py $@

.venv/bin/ruff: pyproject.toml constraints.txt # and mypy
	test -d .venv || python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[dev]"
	touch .venv/bin/ruff

lint: .venv/bin/ruff
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .

types: .venv/bin/ruff
	.venv/bin/mypy

.venv/bin/sphinx-build: pyproject.toml constraints.txt
	test -d .venv || python3 -m venv .venv
	.venv/bin/pip install -q -c constraints.txt -e ".[docs]"
	touch .venv/bin/sphinx-build

docs: .venv/bin/sphinx-build # out/site/index.html; runs each notebook that changed
	.venv/bin/sphinx-build -q -W --keep-going -b html docs out/site

pages: # style sheets and scripts of pages; needs Node
	npx --yes prettier@3 --print-width 120 --check causal_circuits/pages/*.css causal_circuits/pages/*.js

cluster: # Ray nodes on this machine, disturbed, and the recipes of docs/CLUSTER.md: some ten minutes
	.venv/bin/pip install -q -c constraints.txt -e ".[test,ray]" submitit
	.venv/bin/pip install -q "mlflow-skinny>=3" # wants an older importlib-metadata than constraints.txt pins
	$(PYTHON) -m pytest -q -p no:cacheprovider tests/cluster/check_ray.py tests/cluster/check_recipes.py

release: # installs the newest, the oldest and the fewest dependencies: some 15 minutes
	$(PYTHON) tests/packaging/check_install.py
