# make compare: the main job on the embedded data; make test: every test; make lint. All make the environment first.
PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python

.PHONY: install peers chips lint test mutants compare benchmark lock clean

install: $(VENV)/installed

$(VENV)/installed: requirements.lock setup.py
	$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13) and "deeplearn needs Python 3.11 or 3.12; \
	this is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@

# What the tests and the benchmark compare with; without it those tests skip.
peers: install
	$(RUN) -m pip install --quiet --disable-pip-version-check torch==2.13.0 || echo "no PyTorch here: the tests that compare with it skip"

# The compilers for TPUs and CUDA (a gigabyte), in a folder of their own: beside jax they would look for devices at every
# start. Without them the tests that compile for chips that are not here skip.
chips: $(VENV)/chips/installed

$(VENV)/chips/installed: $(VENV)/installed
	$(RUN) -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(VENV)/chips \
	  $$($(RUN) -m kernels.chips) && touch $@ || echo "no compilers for other chips here: the tests that need them skip"

compare: install
	$(RUN) -m deeplearn compare --config=experiments/digits_mlp.py --workdir=runs/compare

test: install
	$(RUN) -m pytest -q --numprocesses=2 --dist=worksteal

# Whether the tests notice wrong code: makes small changes, one at a time, and runs the tests that should fail.
mutants: peers
	$(RUN) tests/mutants/run.py

lint: install
	$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

benchmark: peers
	$(RUN) -m deeplearn benchmark

lock:
	uv pip compile setup.py --extra dev --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --upgrade -o requirements.lock

clean:
	rm -rf $(VENV) runs build *.egg-info
