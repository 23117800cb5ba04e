# make test    the tests
# make demo    the main job on synthetic birds: no GPU, nothing to download
# make pictures    the pictures of README.md, from the demo
#
# Each sets everything up first, once: a virtual environment in .venv (or the active one) with the project in it.
# A machine without a GPU saves a large download by installing the CPU build of torch into .venv first; the "Get started"
# page of pytorch.org has the command.

PYTHON ?= python3
VENV   ?= $(or $(VIRTUAL_ENV),.venv)
PY     := $(VENV)/bin/python
STAMP  := $(VENV)/.gan-inversion-3d

# Threads of torch that wait for each other sleep instead of spinning: where the cores are shared with other jobs, spinning
# makes the small operations of the renderer ten times slower.
export OMP_WAIT_POLICY ?= passive

RECENT := -c 'import sys; sys.exit(sys.version_info < (3, 11))'
TOO_OLD = { echo "Python 3.11 or newer is needed, and $(1) is not; name one: make PYTHON=/path/to/python3.11 $(MAKECMDGOALS)"; exit 1; }

TEST_PROCESSES ?= 2

.PHONY: setup test demo pictures lint doctor clean

setup: $(STAMP)

$(STAMP): pyproject.toml setup.py
	@test -x $(PY) || $(PYTHON) $(RECENT) || $(call TOO_OLD,$(PYTHON))
	test -x $(PY) || $(PYTHON) -m venv $(VENV)
	@$(PY) $(RECENT) || $(call TOO_OLD,$(PY))
	$(PY) -m pip install --disable-pip-version-check -e ".[dev]"
	@touch $@

# Each process takes whole files, whose fixtures are costly, and one thread.
test: setup
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(TEST_PROCESSES) --dist loadfile

demo: setup
	$(PY) scripts/demo.py

pictures: demo
	$(PY) scripts/pictures.py

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .

doctor: setup
	$(PY) scripts/doctor.py

# What can be made again; never runs/ or datasets/.
clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
