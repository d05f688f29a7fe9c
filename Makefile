# The short way in: `make demo` trains, evaluates and uses a small model, `make check` checks what can be checked in about a
# minute, `make test` everything. All make .venv first.
# Works with GNU make 3.81 (macOS) and any POSIX sh. Paths are relative throughout, so the folder's name may hold spaces.

# The switch for Linux with NVIDIA, `make install MLX=cuda13`. The venv remembers it, later commands don't repeat it.
MLX ?=
# The Python that makes .venv; by default the first suitable one of CANDIDATES.
PYTHON ?=
CANDIDATES = python3 python3.14 python3.13 python3.12 python3.11 python3.10
DEMO_SEED ?= 0
# Arguments of `make bench`: quick=true out=<file> against=<file>; peers=true is one of make's own as well
BENCH ?=
peers ?=

# An older PYTHONPATH or a pip that installs elsewhere must not leak into the venv.
unexport PYTHONPATH PYTHONHOME PIP_USER PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

# What .venv has: written when it is made, before anything is installed.
VENV_MLX := $(shell cat .venv/mlx 2>/dev/null)
WANTED_MLX = $(or $(MLX),$(VENV_MLX),default)
REQUIREMENTS = $(if $(filter cuda13,$(WANTED_MLX)),requirements-cuda.txt,requirements.txt)
INCLUDED = requirements-common.txt $(if $(filter cuda13,$(WANTED_MLX)),,requirements-mlx.txt)

# What was installed counts only while it is there: an upgrade takes the Python of .venv away, and `uv sync`, which uses
# the same .venv, all packages that it does not know.
HAS = .venv/bin/python -c 'import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))'
ifneq ($(VENV_MLX),)
$(shell $(HAS) mlx.core hydra pydantic wandb 2>/dev/null || rm -f .venv/installed)
$(shell $(HAS) ruff mypy pytest xdist 2>/dev/null || rm -f .venv/installed-dev)
endif

# Two processes, each with whole files, so that what a file prepares is prepared once; in the order of their names, since
# the files with the fewest tests have the longest.
PYTEST = .venv/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder
REPORT = device-report.json
PIP_INSTALL = .venv/bin/python -m pip install -qq --disable-pip-version-check
DATA = data/sudoku-6x6
RUN = checkpoints/demo
# In none of the demo's files. Where the model fails at once it tries again, on copies of the puzzle.
PUZZLE = .2...44.352.1..6...5.4.3.65.4.241..5
# What the viewer shows, the film of the model's thinking included.
SHOWN = [inputs,labels,puzzle_identifiers,preds,q_halt_logits,q_continue_logits,step_preds]

.DEFAULT_GOAL := help
.PHONY: help install demo check test test-gpu lint browser bench clean check-switch

help:
	@echo "make install   make .venv and install requirements.txt (Linux with NVIDIA: make install MLX=cuda13)"
	@echo "make demo      build a small data set, train a small model on it, evaluate it and solve a puzzle (DEMO_SEED=0)"
	@echo "make check     lint, types and the fast tests: about a minute"
	@echo "make test      lint, types and all tests"
	@echo "make test-gpu  the GPU against the CPU and the reference values; writes $(REPORT), to be sent with an issue"
	@echo "make bench     the speed of the default model on this machine, and its bound (BENCH='quick=true out=b.json')"
	@echo "                peers=true: beside the same model in PyTorch, where that is installed"
	@echo "make clean     remove .venv, caches and what the demo made"
	@echo "The Python to use, 3.10 or newer: PYTHON=/path/to/python"

install: .venv/installed
	@echo "Ready: .venv (MLX: $(WANTED_MLX)). Use it with: source .venv/bin/activate"

check-switch:
	@case "$(WANTED_MLX)" in default|cuda13) ;; *) \
	  echo "MLX=$(WANTED_MLX) is unknown: leave it out (macOS, Linux on a CPU) or use MLX=cuda13 (Linux with NVIDIA)" >&2; \
	  exit 1 ;; esac
	@had=$$(cat .venv/mlx 2>/dev/null); if [ -z "$$had" ] && [ -e .venv ]; then \
	  ls -d .venv/lib*/python*/site-packages/mlx_cuda* >/dev/null 2>&1 && had=cuda13 || had=default; fi; \
	if [ -n "$$had" ] && [ "$$had" != "$(WANTED_MLX)" ]; then \
	  echo ".venv has MLX=$$had, and MLX=$(WANTED_MLX) can't be installed over it: run 'make clean' first" >&2; exit 1; fi

# A .venv that somebody else made (no .venv/mlx) is used if it has pip, and never deleted.
# .venv/unfinished marks a .venv whose first installation was cut off: it is thrown away, since nothing says how far pip got.
.venv/installed: $(REQUIREMENTS) $(INCLUDED) | check-switch
	@if [ -e .venv/unfinished ] || ! .venv/bin/python -m pip --version >/dev/null 2>&1; then \
	  if [ -e .venv ] && [ ! -e .venv/mlx ]; then \
	    echo "there is a .venv that has no working pip and isn't make's: remove it ('make clean' does) and try again" >&2; exit 1; fi; \
	  found=; reason=; tried=; \
	  for python in $(if $(PYTHON),"$(PYTHON)",$(CANDIDATES)); do \
	    version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null); \
	    tried="$$tried$${tried:+, }$$python: $${version:-none}"; \
	    if ! "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then \
	      continue; \
	    elif "$$python" -c 'import ensurepip, venv' 2>/dev/null; then \
	      found=$$python; break; \
	    else \
	      reason="$$python can't make virtual environments (no ensurepip): on Debian or Ubuntu, apt install python3-venv"; \
	    fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    none="no Python >= 3.10 found ($$tried): install one, or name one with PYTHON=/path/to/python"; \
	    echo "$${reason:-$$none}" >&2; exit 1; \
	  fi; \
	  rm -rf .venv && mkdir .venv && touch .venv/unfinished && echo "$(WANTED_MLX)" >.venv/mlx && \
	  echo "Making .venv with Python $$version ($$found)" && "$$found" -m venv .venv || exit 1; \
	fi
	@[ -e .venv/mlx ] || echo "$(WANTED_MLX)" >.venv/mlx
	@echo "Installing $(REQUIREMENTS) (the first time a few minutes, mostly downloads)"
	@$(PIP_INSTALL) -r $(REQUIREMENTS)
	@rm -f .venv/unfinished && touch .venv/installed
	@.venv/bin/python -c 'import utils.linux_cpu'  # on a Linux CPU compiles the loops of models/kernels/native

.venv/installed-dev: requirements-dev.txt .venv/installed
	@echo "Installing requirements-dev.txt"
	@$(PIP_INSTALL) -r $(REQUIREMENTS) -r requirements-dev.txt
	@touch .venv/installed-dev

# Every command is echoed in the form that can be typed by hand, also in zsh, which takes a bare [ for a pattern.
demo: .venv/installed
	@run() { line=; for word; do case $$word in *\[*) line="$$line '$$word'";; *) line="$$line $$word";; esac; done; \
	  echo; echo "\$$$$line"; env "$$@"; }; set -e; \
	WANDB_MODE=$${WANDB_MODE:-disabled}; python=.venv/bin/python; \
	run $$python dataset/build_mini_sudoku_dataset.py --output-dir $(DATA) --seed $(DEMO_SEED) --overwrite; \
	run rm -rf $(RUN); \
	run WANDB_MODE=$$WANDB_MODE $$python pretrain.py --config-name cfg_demo seed=$(DEMO_SEED) checkpoint_path=$(RUN); \
	checkpoint=$$(ls -t $(RUN)/step_*/model.safetensors | head -n 1); checkpoint=$${checkpoint%/*}; \
	run $$python evaluate.py checkpoint=$$checkpoint show_examples=1 "save_outputs=$(SHOWN)"; \
	run $$python solve.py checkpoint=$$checkpoint puzzle=$(PUZZLE) samples=16 relabel=true; \
	echo; echo "The checkpoint is $$checkpoint."; \
	echo "See the puzzles, and the model think: open puzzle_visualizer.html in a browser, choose the data set $(DATA)"; \
	echo "and the predictions $${checkpoint}_all_preds.0."; \
	echo "Try next: solve.py with a 6x6 puzzle of your own; . is a blank cell, and a typing error is told in one line."; \
	echo "Then change a value, such as --blanks 20 or arch.halt_max_steps=8, or train on 9x9 puzzles: README.md, Quick Demo."

lint: .venv/installed-dev
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	.venv/bin/python -m mypy

check: lint
	$(PYTEST) -m "not slow"

test: lint browser
	$(PYTEST)

# One process, whose lines are read as they come. Where there is no GPU its forms run on the CPU.
test-gpu: .venv/installed-dev
	@HRM_DEVICE_TEST=full HRM_DEVICE_REPORT=$(REPORT) .venv/bin/python -m pytest -q -s --timeout 1200 tests/test_device.py; \
	status=$$?; echo "The report is $(REPORT)."; exit $$status

# For the tests of puzzle_visualizer.html: finds a browser or fetches Playwright's; without either they are left out.
browser: .venv/installed-dev
	@.venv/bin/python -m tests.helpers.browser

bench: .venv/installed
	.venv/bin/python -m utils.bench $(BENCH) $(if $(peers),peers=$(peers))

# Nothing but what these targets made: other data sets, checkpoints and runs stay.
clean:
	@rm -rf .venv .pytest_cache .mypy_cache .ruff_cache .hypothesis $(REPORT) $(DATA) $(RUN)
	@find . -name .git -prune -o -type d -name __pycache__ -prune -exec rm -rf {} +
	@rmdir data checkpoints 2>/dev/null || true
