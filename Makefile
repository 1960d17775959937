# `make` lists the tasks. Each works alone on a fresh clone; a second call installs nothing again.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.PHONY: help train test slow coverage browser torture sweep docs docs-version study bench bench-quick bench-long gpu gpu-tests gpu-speed gpu-paper gpu-wheels lint package clean

help: ## list the tasks
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

train: $(VENV)/installed ## install into .venv and run the recipe digits
	$(BIN)/swa train digits

test: $(VENV)/installed-dev ## install with the dev tools and run all tests but the slow ones
	$(BIN)/pytest -n auto --dist worksteal

slow: $(VENV)/installed-dev ## the tests of seconds each: pages, kills, several processes, the simulated device
	$(BIN)/pytest -n auto --dist worksteal -m slow

coverage: $(VENV)/installed-dev ## both of these, and which lines no test runs: slower by a third
	$(BIN)/pytest -n auto --dist worksteal -m 'slow or not (torture or browser or sweep or gpu)' --cov=swa_cli --cov-report=term:skip-covered

browser: $(VENV)/installed-dev ## the page of `swa report` and the site in Chromium (apt-get install chromium chromium-driver)
	@command -v chromedriver > /dev/null || { echo "chromedriver is missing: apt-get install chromium chromium-driver" >&2; exit 1; }
	$(BIN)/pytest -m browser

torture: $(VENV)/installed-dev ## kill runs at 50 random instants, fill a disk, list a million files: some minutes
	$(BIN)/pytest -m torture --durations=0

sweep: $(VENV)/installed-dev ## every network of torchvision, one of each family of timm: about 10 minutes
	$(BIN)/pytest tests/sweep -m sweep -k 'not one_at_a_time' -n 2 --dist worksteal --durations=10
	$(BIN)/pytest tests/sweep -m sweep -k one_at_a_time --durations=10

docs: $(VENV)/installed-dev ## the documentation site, into site/: open site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict -q

docs-version: $(VENV)/installed-dev ## the site of this version beside those before it, on the branch gh-pages; pushes nothing
	version=$$($(BIN)/python -c 'import swa_cli; print(swa_cli.__version__)') && \
	  NO_MKDOCS_2_WARNING=1 PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mike deploy --update-aliases "$$version" latest && \
	  PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/mike set-default latest

STUDY := $(BIN)/python docs/study/study.py

study: $(VENV)/installed-dev ## train what docs/study.md lacks, in WORK=DIR (images: docs/study/cifar_subset.py): days
	@test -d "$(WORK)/cifar_subset" || { echo "make study WORK=DIR, with DIR/cifar_subset from docs/study/cifar_subset.py" >&2; exit 1; }
	for name in vgg fashion preresnet20; do $(STUDY) tune $$name --work $(WORK) && $(STUDY) run $$name --work $(WORK) || exit 1; done
	$(STUDY) tables

BENCH := PYTHONPATH=tests $(BIN)/python -m benchmarks

bench: $(VENV)/installed-dev ## ratios to the alternatives, measured side by side: 10 minutes, or 40 on a slow machine
	$(BENCH)

bench-quick: $(VENV)/installed-dev ## the same on few images: about 2 minutes, and rough
	$(BENCH) --quick

bench-long: $(VENV)/installed-dev ## jobs of 10 minutes, really run: about 27 minutes
	$(BENCH) --long

# On a GPU. A folder wheels/ (make gpu-wheels) stands for a machine without network: what its Python, which has torch
# for CUDA, lacks is installed from there, into .gpu.
GPU_PYTHON ?= $(PYTHON)
GPU_ENV := $(if $(wildcard wheels/*.whl),.gpu,$(VENV))
GPU_BIN := $(GPU_ENV)/bin
GPU_READY := $(if $(wildcard wheels/*.whl),.gpu/installed,$(VENV)/installed-dev)
GPU_PARTS := gpu-tests gpu-speed gpu-paper
GPU_BENCH := PYTHONPATH=tests $(GPU_BIN)/python -m benchmarks.gpu
CIFAR_FILE = $(if $(CIFAR),--cifar $(CIFAR))

gpu: ## the three below, on one card in under 25 minutes: bench/gpu.json, gpu.md, gpu.png
	@failed=0; for part in $(GPU_PARTS); do $(MAKE) $$part || failed=1; done; exit $$failed

gpu-tests: $(GPU_READY) ## train, resume, score and export on a GPU; without one on a simulated device
	$(GPU_BIN)/python -m pytest tests/gpu -m gpu -v --durations=5 --junitxml=bench/gpu-tests.xml

gpu-speed: $(GPU_READY) ## beside bare loops and scripts (CIFAR=JPEG files of CIFAR-10, an archive or a folder)
	$(GPU_BENCH) speed $(CIFAR_FILE)

gpu-paper: $(GPU_READY) ## VGG-16 and PreResNet-110, SGD and SWA (needs CIFAR=FILE); given again it goes on
	$(GPU_BENCH) paper $(CIFAR_FILE)

WHEELS_FOR := --python-version 3.12 --implementation cp $(foreach tag,_2_28 _2_27 _2_17 2014,--platform manylinux$(tag)_x86_64)

gpu-wheels: $(VENV)/installed ## wheels/ for a GPU machine without network: Python 3.12, torch is there (WITHOUT="scipy numpy")
	@mkdir -p build
	$(BIN)/python tests/gpu/wheels.py > build/gpu-requirements.txt
	$(BIN)/pip download --disable-pip-version-check -q --only-binary=:all: $(WHEELS_FOR) -d wheels -r build/gpu-requirements.txt
	rm -f $(foreach name,$(WITHOUT),wheels/$(name)-*.whl)
	du -sh wheels

lint: $(VENV)/installed-dev ## ruff (format and lint) and mypy
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

package: $(VENV)/installed-dev ## build and check wheel and sdist in dist/, and train with the wheel in a new environment
	rm -rf dist build
	$(BIN)/python -m build
	$(BIN)/twine check --strict dist/*
	$(PYTHON) -m venv build/venv
	build/venv/bin/pip install --disable-pip-version-check -q dist/*.whl
	cd build && venv/bin/swa train digits --dry-run

clean: ## remove the environment and the caches
	rm -rf $(VENV) .gpu build dist site *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

# The markers stand for "installed from this pyproject.toml".
$(VENV)/installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/pip install --disable-pip-version-check -q -e '.[dev]'
	@touch $@ $(VENV)/installed

.gpu/installed: pyproject.toml $(wildcard wheels/*.whl)
	rm -rf .gpu
	$(GPU_PYTHON) -m venv --without-pip .gpu
	$(GPU_PYTHON) -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > "$$(echo .gpu/lib/python3.*/site-packages)/torch.pth"
	$(GPU_PYTHON) -m pip --python .gpu/bin/python install -q --no-index --find-links wheels -e '.[jpeg]' pytest hypothesis
	@touch $@
