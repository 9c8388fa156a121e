PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
NAME ?=
ARGS ?=

.PHONY: setup demo test lint sweep judge tune rates tables report bench gpu

setup: $(STAMP)

# torch comes first and alone: the wheel that is found first (CPU or CUDA) is the one everything else is fitted to.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed, as in: make $(or $(MAKECMDGOALS),setup) PYTHON=python3.12" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q torch==2.13.0
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

# Plain training of four lengths, and methods of one: what a method is worth in plain training.
LEAPS := suite=demo_leap experiment=ttb_text optimizer.lr=0.004 eval.every=100 eval.sequences=512 seed=0-2 hydra.launcher.n_jobs=2

demo: setup
	$(BIN)/python train.py -m suite=demo train.steps=1000 "protocol=[exact,paper,code]" seed=0-1 hydra.launcher.n_jobs=2
	$(BIN)/python scripts/aggregate.py --suite demo
	$(BIN)/python scripts/report.py --suite demo
	$(BIN)/python train.py -m $(LEAPS) predictor=none train.steps=200,280,400,560
	$(BIN)/python train.py -m $(LEAPS) predictor=persistence,linear,trend,average K=10
	$(BIN)/python scripts/report.py --suite demo_leap
	@echo "Can it be predicted?   tables: results/tables/demo/README.md  figures: results/figures/demo"
	@echo "Does it save time?     tables: results/tables/demo_leap/README.md  figure: results/figures/demo_leap/equivalent_budget__demo_leap.png"
	@$(BIN)/python scripts/aggregate.py --suite demo_leap --only equivalent_budget

test: setup
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

sweep: setup
	@test -n "$(NAME)" || { echo "which one? make sweep NAME=$$(ls sweeps | sed 's/.yaml//' | paste -sd '|')" >&2; exit 2; }
	$(BIN)/python scripts/sweep.py $(NAME) $(if $(ARGS),-- $(ARGS))

# Everything of plans/NAME.yaml: settings for every row, found with the same number of trials, then the runs that count.
# `make tune` stops after the settings.
judge tune: setup
	@test -n "$(NAME)" || { echo "which one? make $@ NAME=$$(ls plans | sed 's/.yaml//' | paste -sd '|')" >&2; exit 2; }
	$(BIN)/python scripts/judge.py $(NAME) $(if $(filter tune,$@),--tune-only) $(if $(ARGS),-- $(ARGS))

# Learning rates of ttb_embedded: of plain training first, then of every method around it. A sweep ends with 1
# where runs diverged, as the largest rates may; what is missing scripts/tune.py names.
rates: setup
	for name in tune_stdlib tune_digits tune_stdlib_methods tune_digits_methods; do \
		$(BIN)/python scripts/sweep.py $$name $(if $(ARGS),-- $(ARGS)) || test $$? -eq 1 || exit 2; \
		$(BIN)/python scripts/tune.py $$name || exit 2; \
	done

# With the runs that are kept in results/records, where they are not there already.
tables: setup
	$(BIN)/python scripts/records.py unpack
	$(BIN)/python scripts/aggregate.py $(ARGS)

report: setup
	$(BIN)/python scripts/report.py $(ARGS)

bench: setup
	$(BIN)/python scripts/bench.py $(ARGS)

# On a machine with CUDA. Without a network nothing can be installed there: then PYTHON is one that has what is needed.
gpu:
	PYTHONPATH=src$${PYTHONPATH:+:$$PYTHONPATH} $(or $(wildcard $(BIN)/python),$(PYTHON)) checks/gpu.py $(ARGS)
