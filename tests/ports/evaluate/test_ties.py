"""Near ties, which rounding decides, and mistakes, which it does not explain: both planted, in two precisions."""

import pytest
import torch

from ports.evaluate.ties import UNITS, verdict_on
from ports.evaluate.verifier import KVCache, TargetModel

DTYPES = ["float32", "bfloat16"]
ONE = pytest.mark.parametrize("build", ["eagle3"], indirect=True)


def late(self, fresh):
    """The verifier's cache keeps one rejected token."""
    width = fresh.shape[1]
    more = torch.arange(width) <= fresh.sum(1, keepdim=True)
    self.owned = torch.cat([self.owned[:, : self.slots - width], fresh | more], dim=1)


def leaking(mask):
    """A pass sees all of its own tokens."""
    return lambda self, width, *rest: (
        mask(self, width, *rest) * (torch.arange(self.slots) < self.slots - width if 1 < width < 5 else 1)
    )


def credulous(check):
    """The whole proposal becomes part of the text."""

    def fault(self, proposal):
        block, accepted = check(self, proposal)
        size = proposal.tokens.shape[1]
        block.ids[:, :size] = proposal.tokens
        return block, torch.full_like(accepted, size)

    return fault


FAULTS = {
    "accept": (KVCache, late),
    "mask": (KVCache, leaking(KVCache.mask)),
    "verify": (TargetModel, credulous(TargetModel.verify)),
}


@ONE
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", FAULTS)
def test_a_mistake_is_exit_code_1_with_its_ids_its_place_and_its_margin(command, monkeypatch, name, dtype):
    owner, fault = FAULTS[name]
    monkeypatch.setattr(owner, name, fault)
    code, result, said = command("--max-new-tokens", 12, "--ignore-eos", "--dtype", dtype)
    assert (code, result["lossless"]) == (1, False)
    wrong = [found for found in result["differences"] if not found["near_tie"]]
    assert wrong
    out = " ".join(said.out.split())
    for found in wrong:
        tokens = f"{found['plain']} without the draft, {found['drafted']} with it"
        assert f"token {found['place']}: {tokens}: no near tie, margin {found['margin']:.3g}," in out


@ONE
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_near_tie_is_counted_and_shown_and_exit_code_0(command, monkeypatch, dtype):
    """The planted ties: every token has a twin with its logit, and a pass of several tokens rounds half of them up."""
    read = TargetModel._read

    def rounded(self, ids, *rest):
        logits, features = read(self, ids, *rest)
        logits = logits[..., ::2].repeat_interleave(2, dim=-1)[..., : logits.shape[-1]]
        up = torch.arange(logits.shape[-1]) % 2 if 1 < ids.shape[1] < 5 else 0
        return logits * (1 + up * logits.sign() * torch.finfo(logits.dtype).eps), features

    monkeypatch.setattr(TargetModel, "_read", rounded)
    code, result, said = command("--max-new-tokens", 12, "--ignore-eos", "--dtype", dtype)
    assert (code, result["lossless"]) == (0, True)
    assert result["near_ties"] == len(result["differences"]) > 0
    assert f"{result['near_ties']} near ties" in said.out


@pytest.mark.parametrize("dtype", list(UNITS), ids=str)
@pytest.mark.parametrize(
    ("drafted", "tokens", "apart", "near_tie"),
    [
        ([20.0, 20.0, 1.0], (0, 1), 1.0, True),
        ([20.0, 20.0, 1.0], (0, 1), 2.5, False),  # than rounding explains
        ([20.0, 20.0, 1.0], (0, 2), 1.0, False),  # nobody's likeliest
        ([20.0, 20.0, 1.0], (2, 1), 1.0, False),
    ],
)
def test_the_bounds_of_a_near_tie(dtype, drafted, tokens, apart, near_tie):
    """Of logits up to 20: plain decoding has the second token lower by a part of what rounding explains."""
    drafted = torch.tensor(drafted, dtype=torch.float64)
    lower = torch.tensor([0.0, 0.5 * apart * UNITS[dtype] * torch.finfo(dtype).eps * 20, 0.0], dtype=torch.float64)
    found = verdict_on(drafted - lower, drafted, tokens, dtype)
    assert found.near_tie is near_tie
    assert found.distance == pytest.approx(float(lower[1]))
