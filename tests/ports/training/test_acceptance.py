"""Expected acceptance: its counts, and what chains drafted one after the other say of the same text."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from parity.fixtures.features import hidden_states
from ports.training.alignment import Alignment
from ports.training.data import collate, make_sample, pack
from ports.training.loss import count_chains
from ports.verifier.loading import load_verifier
from tests.ports.conftest import TRAIN, edit, enliven, settings_of
from tests.ports.evaluate.plain import agreeing, continue_greedily, propose

STEPS = 3
LAYERS = {"eagle3": [3, 5, 6], "hass": [-1]}


@given(st.integers(1, 6), st.integers(1, 4), st.randoms(use_true_random=False))
def test_counts_are_those_of_a_loop_over_chains(length, steps, random):
    right = [[random.random() < 0.7 for _ in range(length)] for _ in range(steps)]
    inside = [random.random() < 0.8 for _ in range(length)]
    reached, accepted = [0] * steps, [0] * steps
    for start in range(length):
        for step in range(steps):
            row = start + step
            if row >= length or not all(inside[start : row + 1]):
                break
            reached[step] += 1
            if not right[step][row]:
                break
            accepted[step] += 1
    found = count_chains(torch.tensor(right)[:, None], torch.tensor([inside]))
    assert found.tolist() == [reached, accepted]


@pytest.fixture
def judge(fixture):
    return load_verifier(str(fixture / "verifier"), "float32", torch.device("cpu"), head=True)


@pytest.fixture
def port(request):
    return request.param


@pytest.fixture
def answered(fixture, port, judge):
    """Two dialogues that the verifier answers itself, in the place of the records: where its answers start, and ids."""
    texts, folder = [], fixture / f"data_{port}"
    for file in folder.iterdir():
        file.unlink()
    for number, prompt in enumerate(([7, 8, 9, 30], [11, 4])):
        text = prompt + continue_greedily(judge, prompt, 24 + number)
        states, mask = hidden_states(judge, text), (torch.arange(len(text)) >= len(prompt)).long()
        features = torch.cat([states[layer] for layer in LAYERS[port]], dim=-1)
        record = {"input_ids": torch.tensor(text), "loss_mask": mask, "hidden_state": features, "target": states[-1]}
        for place in range(8):
            torch.save(record, folder / f"data_{place}_{number}.ckpt")
        texts.append((len(prompt), record))
    return texts


def drafted(draft, judge, answered):
    """Chain after chain from every place of every answer: [2, k] reached and accepted, without any cache."""
    reached, accepted = [0] * STEPS, [0] * STEPS
    for start, record in answered:
        text = record["input_ids"].tolist()
        states, right = hidden_states(judge, text), [*text, *continue_greedily(judge, text, 1)]
        for done in range(start + 1, len(right)):
            proposal = propose(draft, [state[: done - 1] for state in states], text[:done], STEPS)
            room = min(STEPS, len(right) - done)
            agreed = agreeing(proposal[:room], right[done : done + room])
            for step in range(room):
                reached[step] += agreed >= step
                accepted[step] += agreed > step
    return [reached, accepted]


@pytest.mark.parametrize(("port", "alignment"), [("eagle3", "chain"), ("hass", "prototype")], indirect=["port"])
def test_what_is_counted_is_what_chains_from_every_place_have_accepted(
    fixture, port, judge, answered, tmp_path, alignment
):
    """Whichever alignment the draft is trained in, of one layer or two, on packed rows as on padded ones."""
    edit(fixture / f"draft_{port}.json", num_hidden_layers=1 + (alignment == "chain"))
    values = {"cpdir": tmp_path / "cp", "forward_num_total": STEPS, "ttt_alignment": alignment, "noise": False}
    settings, train = settings_of(fixture, port, **values, bs=2, epoch=7, lr=5e-3), TRAIN[port][0]
    draft = enliven(train.build(settings))
    loop = train.start(settings, draft, train.build_dataset(settings, draft.config))
    loop.run()
    samples = [make_sample(record, 8192, Alignment.CHAIN) for _, record in answered]
    padded, packed = (loop.objective(lay(samples), None, True) for lay in (collate, pack))
    assert draft.config.transformer_layer_config._attn_implementation == f"ttt_{alignment}_auto", "put back"
    torch.testing.assert_close(packed, padded, rtol=1e-5, atol=1e-5)
    assert padded[2:].tolist() == drafted(draft, judge, answered)
    reached, accepted = padded[2:].tolist()
    assert all(0 < right < tried for right, tried in zip(accepted, reached)), "or this compares nothing"
