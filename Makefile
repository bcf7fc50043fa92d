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
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[train,serve,remote,ray,eval,inspect,gym,dev]"
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

# The shipped models, from nothing, in some 75 minutes of one core; each step goes on where it was stopped. The verifiers
# begin with questions of one walk, whose answers say at once what was wrong; then come few walks, and the task's own
# problems, and for the PRM a round on what searches against it kept and rejected.
LINE := walks:min_walks=1:max_walks=1:max_told=0:lengths=1,1,2,2,2
FEW := walks:min_walks=2:max_walks=4:min_told=0.3:max_told=0.8
STEPS := out/line.jsonl=0.1,out/few.jsonl=0.5,out/steps.jsonl=0.4
KEPT := out/kept.jsonl=0.5,out/steps.jsonl=0.2,out/few.jsonl=0.25,out/line.jsonl=0.05
ENDS := out/line.jsonl=0.1,out/few.jsonl=0.4,out/attempts.jsonl=0.5
OWN_ENDS := $(BIN)/ttc rollouts --num-rollouts 0
TRAIN = $(BIN)/ttc train $(1) --work out/train/$(2)
STOPPING := beam:width=4:stop=0.95,beam:width=2:stop=0.95,revisions:parallel=4:context=2:stop=0.95
OFFERED := best-of-n,beam:width=4,$(STOPPING)
HARD := --labels hard --pooled --tokens-per-step 1536 --dropout 0

models: setup
	$(BIN)/ttc train policy --out engine/home/policy
	$(OWN_ENDS) --task $(LINE) --num-questions 6000 --num-samples 4 --seed 1 --out out/line.jsonl
	$(OWN_ENDS) --task $(FEW) --num-questions 3000 --num-samples 8 --seed 2 --out out/few.jsonl
	$(OWN_ENDS) --num-questions 5000 --num-samples 8 --seed 4 --out out/attempts.jsonl
	$(BIN)/ttc rollouts --num-questions 1000 --num-samples 2 --num-rollouts 8 --seed 3 --out out/steps.jsonl
	$(call TRAIN,prm,prm_line) --rollouts out/line.jsonl --num-updates 300 --tokens-per-step 1024 --dropout 0 \
		--learning-rate 1e-3 --decay 0 --out out/prm_line
	$(call TRAIN,prm,prm_steps) --base out/prm_line --rollouts $(STEPS) $(HARD) --num-updates 800 \
		--learning-rate 1e-3 --out out/prm_steps
	$(BIN)/ttc search --split train --limit 400 --seed 7 --strategy beam --budget 64 --prm out/prm_steps --with-tree \
		--out out/searched.jsonl
	$(BIN)/ttc rollouts --from out/searched.jsonl --num-rollouts 8 --seed 8 --out out/kept.jsonl
	$(call TRAIN,prm,prm) --base out/prm_steps --rollouts $(KEPT) $(HARD) --num-updates 700 \
		--learning-rate 7e-4 --warmup 100 --decay 0.5 --out engine/home/prm
	$(call TRAIN,trunk-head,trunk_head) --rollouts out/few.jsonl=0.5,out/kept.jsonl=0.5 --labels hard --pooled \
		--num-updates 300 --out engine/home/trunk_head
	$(call TRAIN,orm,orm_line) --rollouts out/line.jsonl --num-updates 300 --tokens-per-step 1024 --dropout 0 \
		--learning-rate 1e-3 --decay 0 --out out/orm_line
	$(call TRAIN,orm,orm) --base out/orm_line --rollouts $(ENDS) --num-updates 1200 --tokens-per-step 1536 --dropout 0 \
		--learning-rate 1e-3 --out engine/home/orm
	$(call TRAIN,revision,revision) --rollouts out/line.jsonl=0.1,out/few.jsonl=0.3,out/attempts.jsonl=0.6 \
		--attempt-weights 0.05,0.55,0.2,0.1,0.1 --num-updates 1800 --out engine/home/reviser
	$(BIN)/ttc calibrate --limit 300 --predictor probe --budgets 4,16,32,64 --strategies $(OFFERED)
	cp out/calibration.json engine/home/calibration.json

# The larger policy that `python -m benchmarks.paper` and `python -m benchmarks.equal_flops --exchange` compare the
# home one with: the same data and as many tokens, in some two hours on one core.
large: setup
	$(call TRAIN,policy,large) --hidden-size 256 --num-layers 12 --num-heads 8 --num-kv-heads 2 --learning-rate 1e-3 \
		--bf16-weights --out benchmarks/checkpoints/large

wheel: setup
	$(BIN)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir dist .

clean:
	rm -rf $(VENV) build dist out *.egg-info ttc_kernels/_native*.so ttc_kernels/_cuda.so
