# The table of contents: every command is a `python -m` entry that takes Hydra overrides in ARGS.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# An environment stays with the device it was installed for: a login node without a GPU shares that of the GPU nodes.
REMEMBERED := $(patsubst $(VENV)/.installed-%,%,$(wildcard $(VENV)/.installed-*))
DEVICE ?= $(or $(firstword $(REMEMBERED)),$(shell command -v nvidia-smi >/dev/null 2>&1 && echo gpu || echo cpu))
OTHER = $(filter-out $(DEVICE),$(REMEMBERED))
EXP ?=
MODEL ?=
OUT ?=
SETS ?=
LABELS ?=
ADDRESS ?=
JOB ?=
WHEELHOUSE ?=
PART_MIB ?= 1024
TEMPLATE ?=
ARGS ?=
WORKERS ?= 2
INSTALLED := $(VENV)/.installed-$(DEVICE)

# Wheels of WHEELHOUSE lie here while they are installed; index addresses of environment and configuration do not count.
WHEELS := $(VENV)/.wheels
GATHERED = --device=$(DEVICE) --requirements requirements/$(DEVICE).txt requirements/tools.txt
FROM_WHEELS = $(if $(WHEELHOUSE),--no-index --find-links=$(WHEELS))
UV_OFFLINE = $(if $(WHEELHOUSE),--no-config --offline --cache-dir=$(WHEELS)/cache)
CHECK_PYTHON = $(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v < (3, 13) else "python %d.%d found, 3.11 or 3.12 needed; set PYTHON=<path>" % v)'

# Settings may also stand on make's own command line: `make train algorithm=grpo`. What make knows is left out.
BLANK := $(subst ,, )
GIVEN := $(subst \$(BLANK),<blank>,$(MAKEOVERRIDES)) # one word each, also where a value holds blanks
OWN := $(addsuffix =%,PYTHON VENV DEVICE EXP ARGS MODEL SETS OUT ADDRESS JOB WHEELHOUSE PART_MIB LABELS TEMPLATE WORKERS)
OVERRIDES := $(ARGS) $(subst <blank>,\$(BLANK),$(filter-out $(OWN),$(GIVEN)))

.PHONY: help device setup wheelhouse train profile submit plan sft models convert ablation data eval judge-check judge-cost report test test-all test-gpu check format bench clean

help: ## list the commands
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

device: # one an environment: packages of both overwrite each other
	$(if $(OTHER),$(error $(VENV) is installed for $(OTHER), and this is DEVICE=$(DEVICE): leave DEVICE out, set VENV=<another folder>, or make clean first))

setup: $(INSTALLED) ## install into .venv; the other commands do it when needed (DEVICE=cpu|gpu, WHEELHOUSE=<folder> without a network)

$(INSTALLED): requirements/$(DEVICE).txt requirements/tools.txt pyproject.toml | device
	@$(CHECK_PYTHON)
	$(if $(WHEELHOUSE),$(PYTHON) -m mrpo.wheelhouse unpack '$(WHEELHOUSE)' $(GATHERED) --into $(WHEELS))
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip --version >/dev/null 2>&1 || $(BIN)/python -m ensurepip
	$(BIN)/python -m pip $(if $(WHEELHOUSE),--isolated) install --quiet $(FROM_WHEELS) -r requirements/tools.txt
	$(BIN)/uv pip install $(UV_OFFLINE) --quiet --compile-bytecode --python $(BIN)/python --no-deps $(FROM_WHEELS) -r $<
	$(BIN)/uv pip install $(UV_OFFLINE) --quiet --python $(BIN)/python --no-deps --no-build-isolation $(FROM_WHEELS) --editable .
	@rm -rf $(WHEELS)
	@touch $@

wheelhouse: ## gather what setup downloads, for a host without a network; OUT=<folder> DEVICE=gpu PART_MIB=1024 (docs/cluster.md)
	@$(CHECK_PYTHON)
	@$(PYTHON) -m mrpo.wheelhouse gather '$(or $(OUT),wheelhouse/$(DEVICE))' $(GATHERED) --part-mib=$(PART_MIB)

train: setup ## train; EXP=<file of conf/experiment> (default phantom), ARGS="learner.lr=1e-5 seed=1"
	@$(BIN)/python -m mrpo.train $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

submit: setup ## train on a Ray cluster; EXP=<as for train> ADDRESS=http://<head>:8265, or JOB=<id> to follow one again (docs/cluster.md)
	@$(BIN)/python -m mrpo.submit --address='$(ADDRESS)' --job='$(JOB)' $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

profile: setup ## record a few steps: traces, flame graphs and a summary by stage; EXP=<as for train>, ARGS="profile.steps=2" (docs/profiling.md)
	@$(BIN)/python -m mrpo.profile $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

sft: setup ## supervised training on gold rationales; EXP=<as for train>, ARGS="sft.lr=1e-5 sft.lora.r=0" (docs/sft.md)
	@$(BIN)/python -m mrpo.sft $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

plan: setup ## who sits where and what memory a run needs, without a GPU or a download; EXP=internvl3 ARGS="cluster=4x_gpu"
	@$(BIN)/python -m mrpo.plan $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

judge-cost: setup ## what the judge of a run will cost, before it is asked; EXP=internvl3 ARGS="judge.model=<name> judge.prices=..." (docs/judge.md)
	@$(BIN)/python -m mrpo.judge_cost $(if $(EXP),experiment=$(EXP)) $(OVERRIDES)

ablation: setup ## train the variants of a study and tabulate them; ARGS="study=smoke" (conf/ablation, docs/ablation.md)
	@$(BIN)/python -m mrpo.ablation $(OVERRIDES)

models: setup ## list the model families, their published checkpoints, licenses and think tags
	@$(BIN)/python -m mrpo.models

convert: setup ## rewrite InternVL's custom-code layout into the native one, or back; MODEL=<folder or hub id> OUT=<new folder>
	@$(BIN)/python -m mrpo.convert '$(MODEL)' '$(OUT)' $(ARGS)

eval: setup ## benchmark a model; MODEL=<run or Hugging Face folder> SETS=vqa_rad,slake ARGS="judge=lexical" (docs/evaluation.md)
	@$(BIN)/python -m mrpo.eval $(if $(MODEL),'benchmark.model=$(MODEL)') $(if $(SETS),'benchmark.sets=[$(SETS)]') $(OVERRIDES)

judge-check: setup ## hold a judge against labelled steps; LABELS=<jsonl or csv> ARGS="judge=lexical", or TEMPLATE=<new csv> (docs/calibration.md)
	@$(BIN)/python -m mrpo.calibration $(if $(LABELS),'check.labels=$(LABELS)') $(if $(TEMPLATE),'check.template=$(TEMPLATE)') $(if $(SETS),'benchmark.sets=[$(SETS)]') $(OVERRIDES)

data: setup ## prepare a data set; ARGS="data.set=vqa_rad data.source=<folder> data.out=<new folder>" (docs/data.md)
	@$(BIN)/python -m mrpo.data prepare $(OVERRIDES)

report: setup ## write report.html of a run again; ARGS=run=runs/phantom/<time>
	@$(BIN)/python -m mrpo.report $(OVERRIDES)

test: setup ## the tests, some 20 minutes on two cores; WORKERS=1 one after the other
	$(BIN)/python -m pytest -m "not slow and not gpu" -n $(WORKERS) --dist loadfile $(ARGS)

test-all: setup ## the tests and the long proofs
	$(BIN)/python -m pytest $(ARGS)

test-gpu: setup ## the tests that need a CUDA device
	$(BIN)/python -m pytest tests/gpu $(ARGS)

check: setup ## lint, format, types: what CI runs before the tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo --no-cache

format: setup ## apply lint fixes and format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## measure (tests/perf); ARGS="hot_path segmentation memory packing conversion judge metrics checkpoint steps", all by default
	$(BIN)/python -m tests.perf $(ARGS)

clean: ## remove the environment and tool caches; runs/ stays
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info build dist
