"""Every deviation fires: the prototype's behaviour and the port's choice, side by side."""

import json
import statistics
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import pre_tokenizers

from parity.fixtures import FIXTURE
from parity.fixtures.dialogues import recordings, word_tokenizer
from parity.fixtures.samples import build_random_fixture
from parity.fixtures.verifier import VerifierSpec
from parity.prototypes.deviations import DEVIATIONS
from parity.prototypes.port import run_port, settings_for, start_port, trace_port
from parity.prototypes.recorded import load_recorded
from parity.prototypes.reference.loop import prepare, trace_reference
from parity.prototypes.synthetic import write_case
from ports.eagle3.train import build
from ports.errors import InputError
from ports.generate.chat import Encoded, Encoder, LossMask
from ports.generate.conversations import ConversationError, split_range
from ports.generate.families import load_family
from ports.generate.vocabulary import Counts, build_map, count_tokens
from ports.training.alignment import Alignment
from ports.training.data import add_uniform_noise, make_sample
from ports.training.objective import step_rows
from ports.training.optimizer import build_optimizer
from ports.training.records import list_records, read_record


@pytest.fixture
def small(tmp_path):
    """A fixture whose draft trains in milliseconds."""
    spec = VerifierSpec(num_hidden_layers=8, seed=5)
    return build_random_fixture(tmp_path / "fixture", spec=spec, lengths=(9, 14, 11, 7), seed=1)


def test_every_entry_of_the_page_is_read_and_names_an_existing_test():
    page = Path(__file__).parents[3] / "docs" / "deviations.md"
    headings = [line[3:] for line in page.read_text().splitlines() if line.startswith("## ")]
    assert [entry.id for entry in DEVIATIONS] == headings
    here = f"tests/parity/prototypes/{Path(__file__).name}"
    assert all(entry.test == f"{here}::test_{entry.id.replace('-', '_')}" for entry in DEVIATIONS)
    assert {entry.test.partition("::")[2] for entry in DEVIATIONS} <= globals().keys()


def test_own_position_kv(case):
    """Steps 0 and 1 are the same in both alignments; from step 2 on every row differs."""
    setup, batch = prepare(case), load_recorded(case).group("mb0.batch.")
    own, chain = (setup.forward(setup.weights(), batch, own_position=own) for own in (True, False))
    real = batch["attention_mask"].bool()
    gaps = [(a.logits - b.logits)[real].abs().amax(-1) for a, b in zip(own.steps, chain.steps)]
    assert gaps[0].max() == gaps[1].max() == 0
    assert (gaps[2] > 1e-4).float().mean() > 0.9


def test_leading_rows(case):
    mask = torch.ones(2, 7, dtype=torch.int64)
    assert step_rows(mask, 2, Alignment.PROTOTYPE).sum() == 14
    assert step_rows(mask, 2, Alignment.CHAIN).sum(1).tolist() == [5, 5]
    recorded = load_recorded(case)
    assert all(point.rows == first.rows for point, first in zip(recorded.curve, recorded.curve[:8]))


def test_unshifted_mask(case):
    record = read_record(case.tmpdir / "data_0.ckpt", {"hidden_state": 192, "target": 64}, 320)
    prototype, chain = (make_sample(record, 8192, alignment).loss_mask for alignment in Alignment)
    assert torch.equal(prototype[:-1], record["loss_mask"][:-1].long())
    assert torch.equal(chain[:-1], record["loss_mask"][1:].long())
    assert not torch.equal(prototype, chain)


def test_accumulation_wipe(cases, tmp_path, small):
    """The recorded first update equals the reference that wipes; the port's equals the big batch instead."""
    case = cases["eagle3_fp32_k3_ga2"]
    recorded, wiped, port = load_recorded(case), trace_reference(case, optimizer_steps=1), trace_port(case, max_steps=1)
    name = "mb1.grad.fc.weight"
    size = recorded.tensors[name].abs().max()
    assert (recorded.tensors[name] - wiped.tensors[name]).abs().max() < 2e-6 * size
    assert (recorded.tensors[name] - port.tensors[name]).abs().max() > 0.5 * size
    accumulated = trace_port(write_case(tmp_path, small, "accumulated", bs=2, accumulation=2, epoch=0))
    big = trace_port(write_case(tmp_path, small, "big", bs=4, epoch=0))
    for key, value in big.group("after.").items():
        assert torch.allclose(accumulated.tensors[f"after.{key}"], value, atol=2e-5)


def test_rank_normalisation(tmp_path, small):
    """Two processes that normalise by rank train on the mean of their means; with unequal rows that is not the mean."""
    case = write_case(tmp_path, small, "big", bs=2, epoch=0)
    big = trace_port(case, max_steps=1)
    halves = trace_port(case, max_steps=2, bs=1, lr=1e-9)  # the same two samples, one a step
    first, second = (point.loss for point in halves.curve[:2])
    rows = [point.rows for point in halves.curve[:2]]
    assert rows[0] != rows[1]
    by_rank, overall = (first + second) / 2, (first * rows[0] + second * rows[1]) / sum(rows)
    assert big.curve[0].loss == pytest.approx(overall, rel=1e-4)
    assert abs(by_rank - overall) > 1e-2 * overall


def test_ddp_bf16_crash(tmp_path, small):
    trace = trace_port(write_case(tmp_path, small, "bf16", epoch=0), mixed_precision="bf16")
    assert all(point.loss > 0 for point in trace.curve)
    assert {value.dtype for value in trace.group("final.").values()} == {torch.float32}


def test_embed_decay(cases, tmp_path):
    """The recording's float32 master of the embedding shrank by weight decay; the port never decays it."""
    case = cases["eagle3_bf16ds_k3"]
    recorded = (case.meta.model_extra or {})["deepspeed"]
    assert recorded["embed_master_norm_ratio"] == pytest.approx(recorded["weight_decay_product"], abs=1e-6)
    assert recorded["embed_master_norm_ratio"] < 1
    run = run_port(case, tmp_path, max_steps=1)
    optimizer = build_optimizer(run.draft, 1e-3)
    assert all(p is not run.draft.embed_tokens.weight for group in optimizer.param_groups for p in group["params"])


def test_epoch_plus_one(case, tmp_path):
    recorded = load_recorded(case)
    assert case.epoch == 4
    assert {point.epoch for point in recorded.curve} == {0, 1, 2, 3, 4}
    assert settings_for(case, tmp_path).schedule(17) == (case.meta.total_steps, case.meta.warm_steps)


def test_short_noise():
    noisy = add_uniform_noise(torch.zeros(20, 4096), torch.ones_like)
    assert noisy.max() == pytest.approx(2.56)
    assert add_uniform_noise(torch.zeros(512, 8), torch.ones_like).max() == pytest.approx(0.1)


def test_walk_order(case):
    seen = (case.meta.model_extra or {})["os_walk_order_seen"]
    natural = [file.name for file in list_records(case.tmpdir)]
    assert sorted(seen) == sorted(natural)
    assert seen != natural
    assert natural == case.meta.samples_files


def test_pickle_as_safetensors(case, tmp_path):
    saved = (case.meta.model_extra or {})["saved"]
    assert all(entry["zip_pickle"] and entry["file"].endswith(".safetensors") for entry in saved)
    run = run_port(case, tmp_path, max_steps=1)
    assert not zipfile.is_zipfile(run.checkpoints / "model0" / "model.safetensors")


def test_no_resume(case, tmp_path):
    """The prototype looks for names it never writes; the port starts from what it wrote."""
    saved = {entry["file"] for entry in (case.meta.model_extra or {})["saved"]}
    assert not saved & {"pytorch_model.bin", "model.safetensors"}
    run_port(case, tmp_path / "first", max_steps=2)
    continued = start_port(case, tmp_path / "second", ckpt_path=tmp_path / "first" / "model0").plan.objective.draft
    fresh = start_port(case, tmp_path / "third").plan.objective.draft
    assert not torch.equal(continued.fc.weight, fresh.fc.weight)


def test_one_layer(tmp_path, small):
    config = json.loads((small / "draft_eagle3.json").read_text()) | {"num_hidden_layers": 2}
    (small / "draft_eagle3.json").write_text(json.dumps(config))
    case = write_case(tmp_path, small, "two")
    with pytest.raises(InputError, match="num_hidden_layers: found 2"):
        build(settings_for(case, tmp_path))
    assert len(build(settings_for(case, tmp_path, ttt_alignment="chain")).layers) == 2


def test_train_only(case, tmp_path):
    loop = start_port(case, tmp_path)
    batch = next(iter(loop.loader))
    losses = [float(loop.objective.train(mode)(batch).loss) for mode in (True, False)]
    assert losses[0] == losses[1]


def test_unlogged_metrics(case, tmp_path):
    """Every point the prototype built and dropped is in the port's log, with the same numbers."""
    run_port(case, tmp_path)
    logged = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    built = [json.loads(line)["logdict"] for line in (case.directory / "trajectory.jsonl").read_text().splitlines()]
    assert len(logged) == len(built) == 40
    for mine, theirs in zip(logged, built):
        assert {name for name in mine if name != "step"} == set(theirs)
        assert all(mine[name] == pytest.approx(theirs[name], rel=5e-6) for name in theirs)
    assert statistics.fmean(entry["train/loss"] for entry in logged[-8:]) < 6


def encode(family, loss_mask, *texts, automatic_bos=True, **options):
    """A dialogue of these turns, a user's first."""
    tokenizer = word_tokenizer(family)
    if not automatic_bos:
        tokenizer._tokenizer.post_processor = None
    roles = ["user", "assistant"] * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts)]
    return Encoder(tokenizer, load_family(family), loss_mask, **options)(messages)


def test_hard_coded_offsets():
    """The second answer is masked as recorded only with automatic BOS; an open ending keeps three positions more."""
    texts = ("Name a color.", "Blue is nice.", "And a bird?", "A crow.")
    masks = [encode("llama", LossMask.PROTOTYPE, *texts, automatic_bos=on).loss_mask for on in (True, False)]
    assert masks[0] != masks[1]
    exact = [encode("llama", LossMask.EXACT, *texts, automatic_bos=on) for on in (True, False)]
    assert exact[0] == exact[1]
    words = ["Blue", " is", " nice", ".", "A", " crow", "."]
    assert marked("llama", exact[0]) == words
    ending = encode("llama", LossMask.PROTOTYPE, *texts, "Left open?")
    closed = encode("llama", LossMask.PROTOTYPE, *texts)
    last = [position for position, on in enumerate(closed.loss_mask) if on][-1]
    assert ending.loss_mask[last : last + 3] != [0, 0, 0]


def marked(family, encoded):
    """The tokens in the loss."""
    tokens = word_tokenizer(family).convert_ids_to_tokens(encoded.ids)
    return [token for token, on in zip(tokens, encoded.loss_mask) if on]


def test_first_match_mask():
    texts = ("Say yes.", "Yes.", "Again, say yes.", "Yes.")
    assert marked("mistral", encode("mistral", LossMask.PROTOTYPE, *texts)) == ["Yes", "."]
    assert marked("mistral", encode("mistral", LossMask.EXACT, *texts)) == ["Yes", ".", "Yes", "."]
    tokenizer = word_tokenizer("mistral")
    tokenizer._tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")  # SentencePiece's first space
    dialogue = [{"role": "user", "content": "Say"}, {"role": "assistant", "content": "Yes"}]
    with pytest.raises(ConversationError, match="no occurrence"):
        Encoder(tokenizer, load_family("mistral"), LossMask.PROTOTYPE)(dialogue)
    assert sum(Encoder(tokenizer, load_family("mistral"))(dialogue).loss_mask) == 1


def test_leading_space():
    with_space, without = (encode("qwen", LossMask.EXACT, "Say yes.", "Yes.", leading_space=on) for on in (True, False))
    assert (marked("qwen", with_space)[-2:], marked("qwen", without)[-2:]) == ([" Yes", "."], ["Yes", "."])
    recorded = next(recording for recording in recordings() if recording.name == "eagle3_qwensharegpt")
    assert marked("qwen", Encoded(recorded.samples[0]["ids"], recorded.samples[0]["loss_mask"]))[1] == " Yes"


def test_inclusive_range():
    """Five dialogues were recorded with --samples 4."""
    recorded = next(recording for recording in recordings() if recording.name == "eagle3_llamasharegpt")
    assert sum(map(len, split_range(len(recorded.samples) - 1, 2))) == len(recorded.samples)
    assert [len(part) for part in split_range(4, 2)] == [3, 2]


def test_unstable_zipf(case):
    """Our map and the recorded one differ, and only in tokens that occur equally often."""
    counts = count_tokens(list_records(case.tmpdir), 320, Counts.ALL)
    recorded = torch.from_numpy(np.load(FIXTURE / "t2d.npy"))
    ours = build_map(counts, int(recorded.sum()), 320).t2d
    others = (ours != recorded).nonzero().flatten().tolist()
    print(f"{len(others)} of 320 entries differ")
    assert len({counts[token] for token in others}) == 1
