"""One thread in each process that runs tests, no deadlines, and no way out to a model hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TRITON_INTERPRET"] = "1"  # before torch._dynamo, which brings triton, is imported
# Before torch brings OpenMP. As many processes run tests as there are processors: a thread that spins while it waits
# for another that is not running costs thirty times what it computes.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["OMP_WAIT_POLICY"] = "passive"

from hypothesis import settings

settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
