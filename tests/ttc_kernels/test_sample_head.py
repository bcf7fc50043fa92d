"""sample_head: the draw of `sample` from the LM head's logits, whoever computes them."""

import pytest
import torch

from tests.ttc_kernels.test_cuda_kernels import head_inputs
from ttc_kernels.sample import RowSampling, cuda, head, sample, sample_head
from ttc_kernels.sample.cases import FILTERS


def inputs_of(rows: int, vocab: int, dtype: torch.dtype = torch.float32, **filters: float) -> dict:
    inputs = head_inputs(rows, 24, vocab, dtype)
    columns = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | filters
    settings = {
        name: torch.full((rows,), value, dtype=torch.int32 if name == "top_k" else torch.float32)
        for name, value in columns.items()
    }
    sampling = RowSampling(keys=inputs["keys"], positions=inputs["positions"], **settings)
    return {"hidden": inputs["hidden"], "weight": inputs["weight"], "sampling": sampling}


@pytest.mark.parametrize("impl", ["auto", "native", "reference", "triton"])
@pytest.mark.parametrize("filters", FILTERS, ids=str)
def test_it_is_sample_of_the_product(impl, filters):
    inputs = inputs_of(5, 40, **filters)
    tokens, logprobs = sample_head(**inputs, impl=impl)
    expected = sample(inputs["hidden"] @ inputs["weight"].t(), *inputs["sampling"], impl="reference")
    assert torch.equal(tokens, expected[0])
    torch.testing.assert_close(logprobs, expected[1], atol=1e-4, rtol=0)


def test_cuda_has_no_filters_and_auto_goes_around_it(emulated, monkeypatch):
    """With filters "auto" draws by logits and `sample`; a request for CUDA raises."""
    monkeypatch.setattr(cuda, "library", lambda: emulated)
    monkeypatch.setattr(head, "choose", lambda impl, x: "cuda")
    inputs = inputs_of(5, 40, torch.float16)
    calls = []
    monkeypatch.setattr(head, "sample", lambda *args, **options: calls.append(options) or sample(*args))
    fused = sample_head(**inputs, is_filtered=False)
    assert not calls
    unfused = sample_head(**inputs, is_filtered=True)
    assert calls == [{"impl": "auto"}]
    assert torch.equal(fused[0], unfused[0])
    torch.testing.assert_close(fused[1], unfused[1], atol=2e-2, rtol=0)
    with pytest.raises(ValueError, match="impl 'cuda' has no filters"):
        sample_head(**inputs, is_filtered=True, impl="cuda")


@pytest.mark.parametrize("impl", ["native", "reference", "triton", "cuda"])
def test_marks_of_the_drawn_tokens(impl, emulated, monkeypatch):
    monkeypatch.setattr(cuda, "library", lambda: emulated)
    num_rows = 8 if impl == "triton" else 20  # which is interpreted
    inputs = inputs_of(num_rows, 40, torch.float16 if impl == "cuda" else torch.float32)
    inputs["hidden"][3] = float("nan")
    marks = torch.rand(41, generator=torch.Generator().manual_seed(1)) < 0.5
    for is_error in (False, True):
        marks[-1] = is_error
        tokens, logprobs, is_marked = sample_head(**inputs, is_filtered=impl != "cuda", marks=marks, impl=impl)
        assert tokens[3] == -1
        assert is_marked.dtype is torch.bool
        assert torch.equal(is_marked, marks[tokens.long()])
        assert 0 < is_marked.sum() < num_rows
        unmarked = sample_head(**inputs, is_filtered=impl != "cuda", impl=impl)
        assert torch.equal(tokens, unmarked[0])
        torch.testing.assert_close(logprobs, unmarked[1], equal_nan=True)
    with pytest.raises(ValueError, match=r"marks must be contiguous, \(41,\) torch.bool, got \(40,\)"):
        sample_head(**inputs, is_filtered=impl != "cuda", marks=marks[1:], impl=impl)


def test_refuses_what_does_not_fit():
    inputs = inputs_of(5, 40)
    with pytest.raises(ValueError, match=r"got \(5, 24\) torch.float32 .*, \(40, 24\) torch.float16"):
        sample_head(**(inputs | {"weight": inputs["weight"].half()}))
    with pytest.raises(ValueError, match=r"\(5, 23\)"):
        sample_head(**(inputs | {"hidden": inputs["hidden"][:, :23]}))
    with pytest.raises(ValueError, match=r"sample_head: impl must be .* got 'fast'"):
        sample_head(**inputs, impl="fast")
