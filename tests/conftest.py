"""Two threads as on the smallest machine we test on, no deadlines, and no way out to a model hub."""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # before transformers is imported
os.environ["TRITON_INTERPRET"] = "1"  # before torch._dynamo, which brings triton, is imported

import torch
from hypothesis import settings

torch.set_num_threads(2)
settings.register_profile("shared machine", deadline=None)
settings.load_profile("shared machine")
