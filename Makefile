# make demo        set up, train a tiny DeepSeek-V3 on real text, export it, check it in transformers
# make test        set up, lint, test
# make test-long   tests of whole jobs that take longest, apart from the rest
# make test-wheel  build the wheel, install it outside the checkout, train there
# make test-gpu    what only a GPU can show; skips with a reason where there is none
# make test-harness  the engine and the server asked by lm-evaluation-harness, likewise apart
# make test-rl     GRPO's losses against verl's and TRL's, in an environment of its own
# make test-slurm  runs as jobs of a Slurm of two nodes, which it starts (as root; slurm-wlm, munge);
#                  skips with a reason where it cannot, unless DSV3_TEST_SLURM=required
# make test-te     the same against Transformer Engine, which it builds once without a GPU (~10 min)

# The first Python >= 3.12 that really runs: a pyenv shim may exist and answer "command not found".
PYTHON := $(shell for p in python3.12 python3.13 python3 \
	$${PYENV_ROOT:-$$HOME/.pyenv}/versions/3.1[2-9]*/bin/python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 12))' 2>/dev/null && echo "$$p" && break; \
	done)

PY := .venv/bin/python
PIP := -m pip --disable-pip-version-check
# Transformer Engine's Python without its libraries, where a rehearsal looks for it.
SET_ASIDE = .venv/share/dsv3_plugin/transformer_engine
SITE = $(shell $(PY) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

# Tests start hundreds of processes, which import what the first of them has compiled.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup demo test lint test-long test-wheel test-te test-gpu test-harness test-rl test-slurm clean

setup: .venv/.installed

# Made once, and again when a lock changes.
.venv/.installed: requirements.lock requirements-rehearsal.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "dsv3_plugin needs Python 3.12 or newer: install one (for example 'pyenv install 3.12', or your system's python3.12 package) and run make again." >&2; exit 2; }
	@echo "Setting up .venv with $(PYTHON) (about 5 GB, a few minutes; once)"
	@$(PYTHON) -m venv .venv
	@$(PY) $(PIP) install -qq -r requirements.lock
	@$(PY) $(PIP) install -qq --no-deps --editable .
	@$(PY) $(PIP) install -qq --no-deps --upgrade --target $(SET_ASIDE) -r requirements-rehearsal.lock
	@touch $@

demo: setup
	@$(PY) benchmarks/demo.py

lint: setup
	@.venv/bin/ruff check .
	@.venv/bin/ruff format --check .

# A worker for each processor, computing on one thread (tests/conftest.py).
test: lint
	@$(PY) -m pytest -n auto --dist loadscope --no-loadscope-reorder -m "not te and not gpu and not harness and not rl and not slurm and not long" --durations=25

test-long: setup
	@$(PY) -m pytest -n auto --dist loadscope -m long $$(grep -rl --include=*.py mark.long tests) --durations=10

test-wheel: setup
	@$(PY) tests/wheel/train_from_wheel.py

# One process: the tests share the nodes, and some wait for what others began.
test-slurm: setup
	@$(PY) -m pytest -m slurm tests/slurm -rs

# Transformer Engine lives in a second environment laid over the first, so that `make test` shows
# the project without it. Its wheel is built from source; pip keeps it.
.venv-te/.installed: .venv/.installed requirements-te.lock
	@echo "Building Transformer Engine without a GPU (about 10 minutes on 2 cores; once)"
	@$(PYTHON) -m venv .venv-te
	@echo "$(abspath $(SITE))" > $$(.venv-te/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	@.venv-te/bin/python $(PIP) install -qq $$(grep -E '^(nvidia-cuda|setuptools|wheel|ninja|pybind11)' requirements-te.lock)
	@NVIDIA=$(abspath $(SITE))/nvidia; \
	EXTRA=$$(.venv-te/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia; \
	CUDA_HOME=$$NVIDIA/cu13 \
	CPATH=$$NVIDIA/cu13/include:$$NVIDIA/nccl/include:$$NVIDIA/cudnn/include:$$EXTRA/cu13/include \
	PATH=$(abspath .venv-te/bin):$$PATH \
	.venv-te/bin/python $(PIP) install -qq --no-build-isolation -r requirements-te.lock
	@.venv-te/bin/python $(PIP) install -qq --no-deps --editable .
	@touch $@

# TE looks for CUDA's libraries beside itself; here they lie in the environment below.
LIBRARIES = NVIDIA=$(abspath $(SITE))/nvidia; \
	export CUDA_HOME=$$NVIDIA/cu13 CUDNN_HOME=$$NVIDIA/cudnn \
	LD_LIBRARY_PATH=$$(ls -d $$NVIDIA/*/lib | tr '\n' ':')$$LD_LIBRARY_PATH

test-te: .venv-te/.installed
	@$(LIBRARIES); .venv-te/bin/python -m pytest -m te tests/te

# What GRPO is compared with lies in another environment over the first: nothing here needs it.
.venv-rl/.installed: .venv/.installed requirements-rl.lock
	@$(PYTHON) -m venv .venv-rl
	@echo "$(abspath $(SITE))" > $$(.venv-rl/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	@.venv-rl/bin/python $(PIP) install -qq --no-deps -r requirements-rl.lock
	@.venv-rl/bin/python $(PIP) install -qq --no-deps --editable .
	@touch $@

test-rl: .venv-rl/.installed
	@.venv-rl/bin/python -m pytest -m rl tests/grpo

# So does the harness, which brings pandas, scikit-learn and more.
.venv-harness/.installed: .venv/.installed requirements-harness.lock
	@$(PYTHON) -m venv .venv-harness
	@echo "$(abspath $(SITE))" > $$(.venv-harness/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth
	@.venv-harness/bin/python $(PIP) install -qq --no-deps -r requirements-harness.lock
	@.venv-harness/bin/python $(PIP) install -qq --no-deps --editable .
	@touch $@

test-harness: .venv-harness/.installed
	@.venv-harness/bin/python -m pytest -m harness tests/evaluation tests/inference/server

# With Transformer Engine where it is there: in .venv-te, or (its wheel, on a GPU machine) in .venv.
# One process: the tests share the GPUs, and must not share a process with those of the CPU host.
test-gpu: setup
	@$(LIBRARIES); $$(ls .venv-te/bin/python 2>/dev/null || echo $(PY)) -m pytest tests/gpu -rs

clean:
	rm -rf .venv .venv-te .venv-harness .venv-rl runs build dist
