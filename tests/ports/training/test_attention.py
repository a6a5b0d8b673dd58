"""Both forms of the TTT attention: against a loop over positions that follows the formulas word by word; masks."""

import weakref

import pytest
import torch
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from ports.training import attention
from ports.training.alignment import Alignment
from ports.training.attention import (
    AttentionImplementation,
    attention_name,
    auto_ttt_attention,
    documents_of,
    ttt_attention,
)

BOTH = list(Alignment)
FORMS = {"eager": ttt_attention, "fast": auto_ttt_attention}
SHAPES = [(1, 1, 1, 1, 2), (2, 4, 2, 7, 6), (2, 3, 1, 5, 4), (1, 2, 2, 9, 10)]
"""B, query heads, key/value heads, T, head dim."""

every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_alignment = pytest.mark.parametrize("alignment", BOTH)


def draw(shape, steps, dtype=torch.float64):
    """Query, and keys and values of every step, in the memory layout of the projections."""
    batch, heads, kv_heads, length, width = shape
    counts = [heads] + [kv_heads] * 2 * steps
    return [torch.randn(batch, length, count, width, dtype=torch.float64).to(dtype).transpose(1, 2) for count in counts]


def right_padding(batch, length):
    """Every sample one fifth shorter than the one before."""
    lengths = torch.tensor([max(1, length * (5 - sample) // 5) for sample in range(batch)])
    return (torch.arange(length) < lengths[:, None]).long()


def numbered(lengths):
    return torch.arange(1, len(lengths) + 1).repeat_interleave(torch.tensor(lengths))[None]


MASKED = [(shape, right_padding(shape[0], shape[3])) for shape in SHAPES]
MASKED += [((1, 4, 2, sum(lengths), 6), numbered(lengths)) for lengths in ((5, 1, 9, 2), (7,), (1, 1, 1))]


def attend(form, inputs, alignment, mask):
    steps = len(inputs) // 2
    scale = inputs[0].shape[-1] ** -0.5
    return form(inputs[0], tuple(inputs[1 : steps + 1]), tuple(inputs[steps + 1 :]), mask, scale, alignment)


def run(form, inputs, grad, alignment, mask, dtype=None):
    """Output and gradients on the real rows: query, keys, values."""
    inputs = [states.detach().to(dtype or states.dtype).requires_grad_() for states in inputs]
    out = attend(form, inputs, alignment, mask)
    real = mask[:, None, :, None].bool()
    grads = torch.autograd.grad(out, inputs, grad.to(out.dtype) * real, allow_unused=True)
    grads = [torch.zeros_like(states) if g is None else g for states, g in zip(inputs, grads, strict=True)]
    return [out.detach() * real, *grads]


def errors(found, wanted, floor):
    """Largest difference over the largest entry, of output and of every gradient."""
    return [
        ((a.double() - b).abs().max() / b.abs().max().clamp(min=floor)).item()
        for a, b in zip(found, wanted, strict=True)
    ]


def by_hand(query, keys, values, mask, scale, alignment):
    """One row at a time; padded rows stay zero."""
    out = torch.zeros_like(query)
    groups = query.shape[1] // keys[0].shape[1]
    for b, h, p in torch.cartesian_prod(*map(torch.arange, query.shape[:3])).reshape(-1, 3).tolist():
        if mask[b, p]:
            out[b, h, p] = row_by_hand(query[b, h, p], keys, values, mask[b], scale, alignment, (b, h // groups, p))
    return out


def row_by_hand(query, keys, values, mask, scale, alignment, where):
    b, h, p = where
    step = len(keys) - 1
    seen = [(0, j) for j in range(p - step + 1) if mask[j] == mask[p]]
    for distance in range(min(step - 1, p) + 1 if step else 0):
        if mask[p - distance] == mask[p]:
            seen.append((step - distance, p if alignment is Alignment.PROTOTYPE else p - distance))
    scores = torch.stack([query @ keys[i][b, h, j] * scale for i, j in seen])
    weights = scores.exp() / scores.exp().sum()
    return sum(weight * values[i][b, h, j] for weight, (i, j) in zip(weights, seen, strict=True))


@every_form
@every_alignment
@pytest.mark.parametrize("steps", [1, 2, 3, 5])
@pytest.mark.parametrize(("shape", "mask"), MASKED, ids=str)
def test_it_is_the_loop_over_positions(shape, mask, steps, alignment, form):
    """Of a padded batch, and of documents that are packed into one row and do not see each other."""
    inputs = draw(shape, steps)
    grad = torch.randn_like(inputs[0])
    found, wanted = (run(each, inputs, grad, alignment, mask) for each in (form, by_hand))
    assert max(errors(found, wanted, floor=1e-3)) <= 1e-12


@every_form
@every_alignment
@pytest.mark.parametrize("step", [0, 1, 3])
def test_a_masked_key_has_weight_exactly_0(step, alignment, form):
    inputs, mask = draw((2, 4, 2, 9, 4), step + 1), right_padding(2, 9)
    padded = (mask == 0)[:, None, :, None]
    grad = torch.randn_like(inputs[0])
    quiet = run(form, inputs, grad, alignment, mask)
    loud = [torch.where(padded, torch.full_like(states, 1e30), states) for states in inputs]
    for value, wanted in zip(run(form, loud, grad, alignment, mask), quiet, strict=True):
        assert torch.equal(value, wanted)
    for gradient in quiet[1:]:
        assert not gradient[padded.expand_as(gradient)].any()


@every_form
@every_alignment
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_wholly_padded_sample_gives_no_nan_either_way(alignment, dtype, form):
    inputs = [states.requires_grad_() for states in draw((2, 2, 1, 5, 4), 3, dtype)]
    out = attend(form, inputs, alignment, torch.tensor([[0] * 5, [1] * 5]))
    out.float().sum().backward()
    assert out.dtype is dtype
    grads = [states.grad for states in inputs if states.grad is not None]
    assert all(bool(value.isfinite().all()) for value in (out, *grads))


@every_alignment
@pytest.mark.parametrize("implementation", list(AttentionImplementation))
def test_transformers_knows_it_and_dropout_is_refused(alignment, implementation, monkeypatch):
    fast, seen = attention.attend_documents, []
    monkeypatch.setattr(attention, "attend_documents", lambda *words: seen.append(words) or fast(*words))
    query, *states = draw((1, 2, 1, 4, 2), 2)
    name = attention_name(alignment, implementation)
    function, arguments = ALL_ATTENTION_FUNCTIONS[name], (query, tuple(states[:2]), tuple(states[2:]), torch.ones(1, 4))
    out, _ = function(torch.nn.Identity(), *arguments, scaling=0.5)
    torch.testing.assert_close(out.transpose(1, 2), ttt_attention(*arguments, 0.5, alignment))
    assert bool(seen) is (implementation is not AttentionImplementation.EAGER)
    with pytest.raises(ValueError, match=r"attention_dropout: found 0.1, expected 0.0"):
        function(torch.nn.Identity(), *arguments, scaling=0.5, dropout=0.1)


@pytest.mark.parametrize("rows", [[[1, 1], [1, 2]], [[1, 3]], [[2, 2]], [[2, 1]], [[1, 2, 1]], [[1, 2, 0]]])
def test_numbers_out_of_order_and_several_rows_are_refused(rows):
    with pytest.raises(ValueError, match=r"document_ids: found .* expected one row \[1, T\] numbered 1, 2, 3"):
        documents_of(torch.tensor(rows))


RIGHT = [[[1, 1, 1]], [[1, 1, 0], [1, 1, 1]], [[0, 0, 0], [1, 0, 0]], [[1]]]
OTHER = [[[0, 1, 1]], [[1, 1, 1], [1, 0, 1]]]


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.float32])
@pytest.mark.parametrize(("rows", "right"), [(rows, rows in RIGHT) for rows in RIGHT + OTHER])
def test_a_padded_batch_counts_columns(rows, right, dtype):
    documents = documents_of(torch.tensor(rows, dtype=dtype))
    assert (documents.lengths, documents.first, documents.right_padded) == ((), None, right)
    assert documents.positions.tolist() == [list(range(len(rows[0])))]


def test_an_answer_is_remembered_until_the_mask_is_written_to_and_holds_no_mask():
    with torch.inference_mode():
        assert documents_of(torch.ones(1, 3)).right_padded
    mask = torch.ones(1, 3)
    assert documents_of(mask) is documents_of(mask)
    assert documents_of(mask).right_padded
    mask[0, 0] = 0
    assert not documents_of(mask).right_padded
    alive = weakref.ref(mask)
    del mask
    assert alive() is None
