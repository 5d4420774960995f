# The project's verbs. They use the Python of the current environment.
PYTHON ?= python

.PHONY: install check format test test-gpu bench report evidence bench-compare table4 figures quick wheel clean

install:  ## the package with everything that development needs
	$(PYTHON) -m pip install -e ".[dev]"

check:  ## lint, format and types, the latter of the package as it is installed
	ruff check .
	ruff format --check .
	rm -rf build
	$(PYTHON) -m pip install --quiet --no-deps --target build/typed .
	ln -s ../../examples ../../bench build/typed
	cd build/typed && mypy --config-file ../../pyproject.toml -p sigscale -p examples
	cd build/typed && MYPYPATH=bench mypy --config-file ../../pyproject.toml bench/*.py

format:
	ruff check --fix .
	ruff format .

test:  ## everything that runs without a GPU, on all cores
	$(PYTHON) -m pytest -n auto

test-gpu:  ## what needs a GPU
	$(PYTHON) -m pytest -m gpu

bench:  ## time the activations on the GPU, or on the CPU where there is none
	$(PYTHON) -m pytest bench --benchmark-only

report:  ## bench/REPORT.md of all results; says which are of other code than is here
	$(PYTHON) bench/report.py

# make evidence STAGES="kernels quantiles" OUT=DIR DATA=DIR ARGS="--again --dry-run --quick --limit 450"
evidence:  ## all that this machine has to say, to bench/results/<device>-<date>; goes on where it was cut off
	$(PYTHON) bench/evidence.py $(if $(STAGES),--stages "$(STAGES)") $(if $(OUT),--out "$(OUT)") \
		$(if $(DATA),--data "$(DATA)") $(ARGS)

# make bench-compare BASE=main ARGS="bench/test_activations.py -k tanh --exponents 10,20"
bench-compare:  ## the same benchmarks with the package of commit BASE and with this one, by turns
	$(PYTHON) bench/compare.py "$(BASE)" -- $(ARGS)

table4:  ## the paper's Table 4: what the remedies cost a training
	$(PYTHON) bench/table4.py --out table4.json

quick:  ## the CIFAR-10 example in a few minutes
	$(PYTHON) -m examples.cifar10 --quick

figures:  ## the paper's figures in full; DATA=DIR where CIFAR-10 is
	$(PYTHON) -m examples.cifar10 --figure all --seeds 25 $(if $(DATA),--data "$(DATA)")

wheel:
	$(PYTHON) -m build --wheel

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks .hypothesis
