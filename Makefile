# make demo    trains DecoupledNet on drawn pictures for a minute or two, segments, scores, converts it for ONNX
# make test    all tests
# make fuzz    100,000 hostile files for every reader, which takes hours; make fuzz CASES=1000 takes minutes
# make mutants changes one flag, fact or constant at a time and runs the tests about it; an hour or two. make mutants
#              MUTANTS=flags, or MUTANTS="--sample 50", takes minutes
# make oracle  the single-layer references run live in kendryte-caffe (needs a Python 3.6 to 3.9 too); a minute
# make docs    the documents as a site, in build/site: open index.html there; its search needs a server, such as
#              python3 -m http.server -d build/site
# make lint    style and types
# make clean   removes what these made
#
# Each makes .venv when it is first needed. Another interpreter: make PYTHON=python3.12 test

VENV := .venv
PYTHON = $(shell for p in python3 python3.13 python3.12 python3.11 python3.10 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)
# An interpreter named on the command line gets a .venv of its own making.
READY := $(VENV)/ready$(if $(filter command,$(origin PYTHON)),-$(notdir $(PYTHON)))

.PHONY: demo test fuzz mutants oracle docs lint clean

demo: $(READY)
	@$(VENV)/bin/python -m caffe_port.tools.demo

# One thread a process: the tests run side by side instead.
test: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n auto --maxprocesses 8 --dist loadgroup

CASES := 100000

fuzz: $(READY)
	$(VENV)/bin/python benchmarks/fuzz.py --cases $(CASES)

MUTANTS :=

mutants: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python benchmarks/mutants.py $(MUTANTS)

# kendryte-caffe has wheels for Python 3.6 to 3.9 only, and a venv of its own. Another: make ORACLE_PYTHON=... oracle
ORACLE := .venv-oracle
ORACLE_PYTHON = $(shell for p in python3.9 python3.8 python3.7 python3.6 \
	$(wildcard $(HOME)/.pyenv/versions/3.9.*/bin/python $(HOME)/.pyenv/versions/3.[678].*/bin/python); do \
	$$p -c 'import sys; sys.exit(not (3, 6) <= sys.version_info < (3, 10))' 2>/dev/null && echo $$p && break; done)

oracle: $(READY) $(ORACLE)/ready
	GLOG_minloglevel=2 $(VENV)/bin/python benchmarks/oracle.py --python $(ORACLE)/bin/python

$(ORACLE)/ready:
	@test -n "$(ORACLE_PYTHON)" || { \
		echo "make: kendryte-caffe needs Python 3.6 to 3.9, none found; name one: make ORACLE_PYTHON=python3.8 oracle" >&2; exit 2; }
	@$(ORACLE_PYTHON) -m venv --clear $(ORACLE)
	@$(ORACLE)/bin/python -m pip install -q --disable-pip-version-check "kendryte-caffe==1.0.0.20210829" "protobuf<3.21"
	@touch $@

docs: $(READY)
	$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-build-isolation -e '.[docs]'
	$(VENV)/bin/mkdocs build --strict

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

clean:
	rm -rf $(VENV) $(ORACLE) build dist demo_output demo_parity *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +

$(READY): requirements.lock pyproject.toml setup.py
	@$(or $(PYTHON),false) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
		echo "make: needs Python 3.10 or newer, found $(or $(PYTHON),none); name one: make PYTHON=/path/to/python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "make: $(PYTHON) has no venv; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	@echo "Installing the pinned dependencies into $(VENV), once; this takes some minutes." >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(VENV)/bin/python -m pip install --disable-pip-version-check -r requirements.lock
	@$(VENV)/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(VENV)/ready $@
