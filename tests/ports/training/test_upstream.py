"""Drafts in Speculators' own trainer: its command, and for HASS the loss of the port's loop on the same batch.

For Eagle3 that is ``tests/ports/architectures/test_training.py``: the port's draft is Speculators' own class.
"""

import json

import pytest
import torch
from speculators import SpeculatorModel
from speculators.models.eagle3 import Eagle3DraftModel
from speculators.train import cli, trainer
from speculators.train.config import TrainConfig
from speculators.train.data import ArrowDataset, CollateFn
from speculators.utils.loading import load_model_layers

from ports.errors import InputError
from ports.hass import HassDraftModel
from ports.hass import train as hass
from ports.hass.objective import HassObjective
from ports.training.data import pack
from ports.training.settings import HassSettings

ROW = 128
EAGER = "--loss-implementation", "eager"
"""Without Triton."""


@pytest.fixture
def on_a_cpu(monkeypatch):
    """Speculators' trainer asks for an accelerator by number, and waits for one to measure times."""
    monkeypatch.setattr(trainer, "get_local_rank", lambda: "cpu")
    monkeypatch.setattr(torch.accelerator, "synchronize", lambda *_: None)


def words(place, folder, *more, algorithm="hass"):
    if algorithm == "eagle3":
        maps = [word for name in ("t2d", "d2t") for word in (f"--{name}-path", str(place.root / f"{name}.npy"))]
        more = "--from-pretrained", str(place.root / "trained_eagle3"), "--draft-attn-impl", "sdpa", *maps, *EAGER
    else:
        more = "--draft-arch", "llama", "--full-attention-indices", "0", *more
    flags = {
        "verifier-name-or-path": place.verifier,
        "data-path": place.root / "arrow",
        "save-path": folder,
        "speculator-type": algorithm,
        "total-seq-len": ROW,
        "ttt-steps": 2,
        "on-missing": "raise",
        "hidden-states-dtype": "float32",
        "epochs": 2,
        "lr": 1e-3,
        "num-workers": 0,
        "train-data-ratio": 0.75,
    }
    return [*(word for name, value in flags.items() for word in (f"--{name}", str(value))), *more]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("algorithm", "kind"), [("hass", HassDraftModel), ("eagle3", Eagle3DraftModel)])
def test_speculators_train_trains_and_saves_it(built, on_a_cpu, tmp_path, algorithm, kind):
    """Eagle3 goes on from a checkpoint of the port, HASS begins."""
    cli.main(TrainConfig.resolve(words(built, tmp_path / "saved", algorithm=algorithm)))
    draft = SpeculatorModel.from_pretrained(tmp_path / "saved" / "1")
    assert type(draft) is kind
    first = SpeculatorModel.from_pretrained(tmp_path / "saved" / "0")
    assert not torch.equal(draft.fc.weight, first.fc.weight)
    said = draft.config.speculators_config
    found = said.algorithm, said.verifier.name_or_path, said.proposal_methods[0].speculative_tokens
    assert found == (algorithm, str(built.verifier), 2)
    (table,) = load_model_layers(["embed_tokens.weight"], str(built.verifier)).values()
    assert torch.equal(draft.embed_tokens.weight, table.to(draft.embed_tokens.weight.dtype))
    found = json.loads((tmp_path / "saved" / "1" / "val_metrics.json").read_text())
    assert found["loss_epoch"] > 0
    assert 0 <= found["cond_acc_0_epoch"] <= 1


@pytest.mark.parametrize("alignment", ["chain", "prototype"])
def test_its_forward_gives_the_loss_and_gradients_of_the_ports_loop(built, tmp_path, alignment):
    """On three documents and padding in one row, as that trainer's loader lays them."""
    values = {"basepath": str(built.verifier), "configpath": str(built.root / "draft_hass.json"), "noise": False}
    values |= {"tmpdir": built.root / "arrow", "cpdir": tmp_path / "cp", "ttt_alignment": alignment}
    settings = HassSettings(**values, forward_num_total=3)
    draft = hass.build(settings)
    dataset = hass.build_dataset(settings, draft.config)
    wanted = HassObjective(draft, 3)(pack([dataset[index] for index in range(3)]))
    wanted.backward_loss.backward()
    expected = {name: value.grad for name, value in draft.named_parameters() if value.grad is not None}
    draft.zero_grad()
    theirs = ArrowDataset(ROW, built.root / "arrow", on_missing="raise", hidden_states_dtype=torch.float32)
    row = CollateFn(ROW, draft.config.transformer_layer_config.hidden_size, 0, torch.float32)(
        [theirs[i] for i in range(3)]
    )
    assert (row["document_ids"] == -1).any()
    kwargs, _ = draft.get_trainer_kwargs(ttt_steps=3, loss_fn="kl_div")
    _, loss, metrics = draft(**row, **kwargs)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.backward_loss.item(), rel=1e-6)
    for step, each in enumerate(wanted.step_losses):
        assert float(metrics[f"loss_{step}_sum"]) == pytest.approx(float(each), rel=1e-6)
    for name, gradient in expected.items():
        found = draft.get_parameter(name).grad
        assert float((found - gradient).abs().max()) <= 1e-6 * float(gradient.abs().max()), name


def test_a_row_of_padding_alone_has_a_loss_without_effect(built):
    draft = SpeculatorModel.from_pretrained(built.root / "trained_hass")
    width = draft.config.transformer_layer_config.hidden_size
    _, loss, _ = draft(**CollateFn(ROW, width, 0, torch.float32)([]), ttt_steps=2)
    loss.backward()
    assert float(loss) == 0.0
    assert all(float(value.grad.abs().sum()) == 0 for value in draft.parameters() if value.requires_grad)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (["--loss-fn", "ce"], "--loss-fn"),
        (["--ttt-step-loss-decay", "0.5"], "--ttt-step-loss-decay"),
        (["--num-layers", "2"], "--full-attention-indices"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_what_it_cannot_follow_is_refused(built, on_a_cpu, tmp_path, options, field):
    with pytest.raises(InputError, match=field):
        cli.main(TrainConfig.resolve(words(built, tmp_path / "saved", *options)))
