# The project's verbs. They use the Python of the current environment.
PYTHON ?= python

.PHONY: install check format test test-gpu bench report evidence bench-compare table4 figures quick wheel clean

install:  ## the package with everything that development needs
	$(PYTHON) -m pip install -e ".[dev]"

check:  ## lint, format and types, the latter of the package as it is installed
	ruff check .
	ruff format --check .
	rm -rf build
	$(PYTHON) -m pip install --quiet --no-deps --no-build-isolation --target build/typed .
	ln -s ../../examples ../../bench build/typed
	cd build/typed && mypy --config-file ../../pyproject.toml -p sigscale -p examples -p bench

format:
	ruff check --fix .
	ruff format .

test:  ## everything that runs without a GPU, on all cores
	$(PYTHON) -m pytest -n auto

test-gpu:  ## what needs a GPU
	$(PYTHON) -m pytest -m gpu

bench:  ## time the activations on the GPU, or on the CPU where there is none
	$(PYTHON) -m pytest bench --benchmark-only

# make report ARGS="run.jsonl --name cpu-2026-11-28" first stores a run of `pytest bench --out run.jsonl`
report:  ## bench/README.md and the README's table from bench/results/; names stale results
	$(PYTHON) -m bench.report $(ARGS)

# make evidence CALL=1 OUT=DIR ARGS="--seconds 150 --rehearse"
evidence:  ## all measurements on a GPU that is there for minutes; without CALL, print the plan
	$(PYTHON) -m bench.evidence $(if $(CALL),--call $(CALL)) $(if $(OUT),--out "$(OUT)") $(ARGS)

# make bench-compare BASE=main ARGS="bench/test_activations.py -k tanh --exponents 10,20"
bench-compare: ARGS ?= bench
bench-compare:  ## the same benchmarks with the package of commit BASE, then with this one
	$(if $(BASE),,$(error name a commit to compare with: make bench-compare BASE=main))
	git worktree remove --force build/base 2> /dev/null; git worktree prune; rm -rf build/base
	git worktree add --quiet --detach build/base "$(BASE)"
	rm -rf build/base/bench build/base/examples && cp -r bench examples build/base
	ln -s ../kernels build/base/sigscale/kernels
	cd build/base && $(PYTHON) -m pytest --benchmark-only --benchmark-storage="$(CURDIR)/.benchmarks" \
		--benchmark-save=base $(ARGS)
	$(PYTHON) -m pytest --benchmark-only $(ARGS) --benchmark-compare-fail=median:10% --benchmark-compare
	git worktree remove --force build/base

table4:  ## the paper's Table 4: what the remedies cost a training, in all modes
	$(PYTHON) -m pytest bench/table4 --benchmark-only --seconds 2 --modes eager,compile,graph --out table4.jsonl

quick:  ## the CIFAR-10 example in a few minutes
	$(PYTHON) -m examples.cifar10 --quick

figures:  ## the paper's figures in full; DATA=DIR where CIFAR-10 is
	$(PYTHON) -m examples.cifar10 --figure all --seeds 25 $(if $(DATA),--data "$(DATA)")

wheel:
	$(PYTHON) -m build --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
