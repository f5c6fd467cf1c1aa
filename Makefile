# Each of these does everything on a fresh machine: `make demo`, `make test`, `make bench`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test bench lint clean

demo: .venv/examples-installed
	$(BIN)/python examples/sweep_digits.py

# PYTEST is handed on: make test PYTEST="-m ''" also runs what takes long and is nearly the same elsewhere.
test: .venv/clients-installed
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST)

# About 40 minutes on two cores. BENCH is handed on: make bench BENCH="--only memory"
bench: .venv/bench-installed
	$(BIN)/python -m benchmarks $(BENCH)

lint: .venv/clients-installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# What was installed last; editing pyproject.toml installs again.
.venv/%-installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet -e '.[$*]'
	touch $@

# The clients that the optimizer is tested in. Where one cannot be installed its tests are skipped.
.venv/clients-installed: .venv/dev-installed
	$(BIN)/python -m pip install --quiet -e '.[clients]' \
	|| for client in lightning transformers accelerate fastai; do \
	  $(BIN)/python -m pip install --quiet -e ".[$$client]" || echo "$$client cannot be installed, its tests are skipped"; \
	done
	touch $@

clean:
	rm -rf .venv build *.egg-info
