# Every target sets up what it needs: `make demo` and `make test` work on a machine with python3, g++ and make.
PYTHON ?= python3
TORCH ?= torch==2.13.0
SEEDS ?= 0

VENV := .venv
BIN := $(VENV)/bin
# From pyproject.toml, so that they are written once.
BUILD_REQUIRES = $(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")'

# The tests start many processes that import the same modules.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: setup build test quick fuzz lint demo models large wheel clean

# pip runs again only when pyproject.toml or setup.py changed; the module is brought up to date by ninja each time.
setup: $(VENV)/.installed build

# torch comes first and alone: what is installed next accepts it, so that no other build is ever fetched.
# TORCH may hold options of pip too, such as --index-url.
$(VENV)/.installed: pyproject.toml setup.py
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 11), f"Python >= 3.11 is needed, {sys.executable} is {sys.version}"'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(TORCH)
	$(BUILD_REQUIRES) > $(VENV)/build-requires.txt
	$(BIN)/python -m pip install --quiet -r $(VENV)/build-requires.txt
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,dev]"
	touch $@

build: $(VENV)/.installed
	$(BIN)/python setup.py --quiet build_ext --inplace

# A process per processor, each with the tests beside one another in a file, until one has none left and takes another's.
PYTEST = $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

# Asserts are not rewritten, which takes each process as long as all imports; what fails is run again with its values.
test: setup
	$(PYTEST) --assert=plain || { $(PYTEST) --last-failed --last-failed-no-failures=none; false; }

# Before a commit, in under a minute on two processors: all but the folders and files in SLOW of tests/conftest.py.
quick: setup
	$(PYTEST) -m "not slow"

# The KV tree and the ops under random calls, in a build that AddressSanitizer watches. Python itself is not built with
# it, so its library is loaded first (and that of C++, whose exceptions it follows), and leaks are not looked for.
SANITIZED := build/sanitized
FUZZ_SECONDS ?= 120
fuzz: setup
	TTC_SANITIZE=address TTC_CUDA=off $(BIN)/python setup.py --quiet build_ext --build-lib $(SANITIZED)/lib \
		--build-temp $(SANITIZED)/temp
	LD_PRELOAD="$$($${CXX:-c++} -print-file-name=libasan.so) $$($${CXX:-c++} -print-file-name=libstdc++.so)" \
		ASAN_OPTIONS=detect_leaks=0:abort_on_error=1 TTC_NATIVE=$(SANITIZED)/lib/ttc_kernels \
		$(BIN)/python -m tests.ttc_kernels.fuzz --seconds $(FUZZ_SECONDS)

lint: setup
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/lint-imports

demo: setup
	$(BIN)/python -m benchmarks.demo --seeds $(SEEDS)

# The shipped models, from nothing; each step goes on where it was stopped.
models: setup
	$(BIN)/ttc train policy --out engine/home/policy
	$(BIN)/ttc rollouts
	$(BIN)/ttc train prm --out engine/home/prm
	$(BIN)/ttc train trunk-head --out engine/home/trunk_head
	$(BIN)/ttc rollouts --num-questions 16000 --num-samples 16 --num-rollouts 0 --seed 11 --out out/attempts.jsonl
	$(BIN)/ttc train revision --out engine/home/reviser
	$(BIN)/ttc rollouts --policy engine/home/reviser --num-questions 2600 --num-samples 1 --num-attempts 8 \
		--context 2 --num-rollouts 0 --seed 12 --out out/chains.jsonl
	$(BIN)/ttc train orm --rollouts out/attempts.jsonl,out/chains.jsonl --max-answers 4 --out engine/home/orm
	$(BIN)/ttc calibrate --limit 600 --predictor score --pilot 2 --bins quantiles:8 --budgets 2,4,8,16,32 \
		--strategies best-of-n,rebase
	cp out/calibration.json engine/home/calibration.json

# The larger policy that `python -m benchmarks.paper` and `python -m benchmarks.equal_flops --exchange` compare the
# home one with: the same data and as many tokens, in some 85 minutes on 2 cores.
large: setup
	$(BIN)/ttc train policy --hidden-size 256 --num-layers 12 --num-heads 8 --num-kv-heads 2 --bf16 \
		--learning-rate 1e-3 --bf16-weights --out benchmarks/checkpoints/large --work out/train/large

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist out *.egg-info ttc_kernels/_native*.so ttc_kernels/_cuda.so
