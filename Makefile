# `make demo` and `make test` set up everything. Both reuse .venv and may run side by side.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/installed
LOCK := $(shell command -v flock >/dev/null 2>&1 && echo flock .setup.lock)
MAR := $(BIN)/mar-bench
SHEETS := table1 table2 table6 fig7 heads same_tokenizer appendix_pixel appendix_l2

.PHONY: install demo smoke test test-fast coverage docs lint reference reports bench-loader bench-metrics bench gpu-check rehearsal torture clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(LOCK) sh -ec 'test $(INSTALLED) -nt pyproject.toml && exit; \
		test -x $(BIN)/python || $(PYTHON) -m venv $(VENV); \
		echo "installing into $(VENV)"; $(BIN)/python -m pip install -q -e ".[test,paper,efficientnet]"; touch $(INSTALLED)'

# Table 1 at tiny scale, training seed 0, stopped half-way, in folders of its own: under ten minutes on two cores.
DEMO := table1 --scale tiny train.steps=2000
demo: $(INSTALLED)
	$(MAR) run $(DEMO) --runs runs/demo --records runs/demo/records
	$(MAR) table $(DEMO) --save --records runs/demo/records --reports runs/demo/reports
	$(MAR) plot $(DEMO) --records runs/demo/records --reports runs/demo/reports
	$(MAR) sample $(DEMO) --runs runs/demo --reports runs/demo/reports
	@echo "with three seeds: without guidance, reports/tiny/learning_curves.md at 2000 steps; after the whole training, reports/tiny/table1.md"

# three workers, as one of them often waits for Slurm
# bytecode is written even where the shell forbids it: else each of some hundred processes compiles the package again
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test: $(INSTALLED) lint
	$(PYTEST)

# Without whole runs and Slurm: under three minutes.
test-fast: $(INSTALLED)
	$(PYTEST) -m "not slow and not smoke and not slurm"

coverage: $(INSTALLED)
	$(PYTEST) --cov=mar_bench --cov-report=term:skip-covered

# The documentation as a site, runs/site: half a minute.
docs: $(INSTALLED)
	$(BIN)/python -m pip install -q -e ".[docs]"
	rm -rf runs/docs && mkdir -p runs/docs && cp -r docs reports slurm examples *.md CITATION.cff runs/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build -q --strict -f docs/mkdocs.yml

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check -q .
	$(BIN)/mypy

# Everything committed in results/ and reports/: all tables at tiny scale, four at desk and three at fashion scale, each on
# its own seeds. About a day of one core; stop and repeat it at will.
OWN := --seeds own --sampling-seeds own
DESK := table1 learning_curves same_tokenizer accelerations --scale desk
FASHION := table1 learning_curves --scale fashion
CHOICE := tokenizer_choice --scale fashion

reference: $(INSTALLED)
	$(MAR) run --all --scale tiny --records results/records
	$(MAR) run $(DESK) $(OWN) --records results/records
	test -d weights/fashion-mnist || $(MAR) fetch fashion-mnist
	$(MAR) run $(FASHION) $(OWN) --records results/records
	$(MAR) run $(CHOICE) --seeds own --no-speed --records results/records
	$(MAKE) reports

reports: $(INSTALLED)
	for tables in "--all --scale tiny" "$(DESK)" "$(FASHION)"; do \
		$(MAR) table $$tables --save >/dev/null && $(MAR) plot $$tables || exit; done
	$(MAR) table $(CHOICE) --save >/dev/null
	$(MAR) sample $(SHEETS) --scale tiny
	$(MAR) neighbours table1/raster_causal/diff/guided --scale tiny
	$(MAR) claims --save >/dev/null
	$(MAR) claims --scale tiny --save >/dev/null
	$(BIN)/python -m tests.docs.regenerate
	$(MAR) report --scale tiny

# Every experiment at smoke scale: three minutes on two cores.
smoke: $(INSTALLED)
	$(MAR) run --all --scale smoke --runs runs/smoke --records runs/smoke/records
	$(MAR) table --all --scale smoke --save --records runs/smoke/records --reports runs/smoke/reports >/dev/null
	$(MAR) plot --all --scale smoke --records runs/smoke/records --reports runs/smoke/reports

# Latents per second from our cache against the official code's one npz file per image: half a minute.
bench-loader: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/loader.py

# All metrics of 50,000 images with Inception-sized features: five minutes on two cores, 4 GB of memory.
bench-metrics: $(INSTALLED)
	$(BIN)/python benchmarks/metrics.py

# docs/performance.md: MAR-B on this CPU against the published algorithm, growth with every size, and the limits of the
# paper's scale. Half an hour on two idle cores, and about 11 GB of memory for the training steps.
bench: $(INSTALLED)
	$(BIN)/python -m benchmarks.performance

# A GPU against this CPU, its speed, and Table 1 at smoke scale on it and on all of them: reports/gpu. About ten minutes.
gpu-check: $(INSTALLED)
	$(BIN)/python -m benchmarks.gpu_check

# Every training of Table 1 at its true size for a few steps: ten minutes on two cores, 24 GB of memory.
rehearsal: $(INSTALLED)
	$(MAR) rehearse table1 --scale paper --save

# Kills, damaged files, full disks, nonsense in files, load: docs/reliability.md. An hour on two cores.
torture: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.torture --write docs/reliability.md

clean:
	rm -rf $(VENV) runs .setup.lock .pytest_cache .ruff_cache .mypy_cache
