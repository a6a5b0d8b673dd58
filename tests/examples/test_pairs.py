"""EAGLE's and HASS' training scripts as pairs: explained, with the numbers of the page, and faults that are named."""

import json
import re
from dataclasses import replace
from functools import cache
from hashlib import sha256
from pathlib import Path

import pytest
import torch

from parity import Options, read_trace, run_pair
from parity.errors import InputError
from parity.outside import TraceSide
from parity.pair import find_pair
from parity.prototypes.recorded import configuration, load_recorded
from parity.report.ledger import size

ROOT = Path(__file__).resolve().parents[2]
PAIRS = ROOT / "examples" / "pairs"
PAGE = (ROOT / "docs" / "originals.md").read_text()
SECTIONS = {
    "EAGLE against the prototype": ("eagle.py:EAGLE", "eagle3_fp32_k3"),
    "EAGLE against the prototype, every position in the loss": ("eagle.py:EAGLE", "eagle3_fp32_k3_every_row"),
    "EAGLE against Speculators": ("eagle.py:SPECULATORS", "eagle3_fp32_k3_bs1"),
    "HASS against the prototype": ("hass.py:HASS", "hass_fp32_k3"),
}
NAMES = sorted({name for name, _ in SECTIONS.values()})
RUNS = "raise SystemExit('ran')\n"
KINDS = ("features", "hidden", "logits", "loss", "grad")
GROUPS = ("layers.0.self_attn", "layers.0.mlp", "norm")


def pair_of(name):
    return find_pair(str(PAIRS / name))


@cache
def reports():
    return {name: run_pair(pair_of(name)) for name in NAMES}


def ledger_of(section):
    name, case = SECTIONS[section]
    return next(ledger for ledger in reports()[name].ledgers if ledger.case == case)


def tables(section):
    """The cells of every table below a heading of the page."""
    text = PAGE.split(f"\n## {section}\n")[1].partition("\n## ")[0]
    return [cells(found.splitlines()[2:]) for found in re.findall(r"(?:^\|.*\n?)+", text, re.MULTILINE)]


def cells(lines):
    """Of the lines of a table."""
    return [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]


def group_of(tensor):
    """The page's name of a tensor's group."""
    name = tensor.removeprefix("mb0.")
    if name.startswith("grad."):
        parameter = name.removeprefix("grad.")
        group = next((group for group in GROUPS if parameter.startswith(group)), parameter.removesuffix(".weight"))
        return f"gradients, {'norms' if 'norm' in parameter else group}"
    step, _, what = name.rpartition(".")
    return f"{what}, step {step[4:]}" if step else "loss, total" if what == "loss" else what


@pytest.mark.parametrize("name", NAMES)
def test_every_difference_is_explained_by_causes_that_are_real(name):
    report = reports()[name]
    assert report.passed
    assert not any(line.left for ledger in report.ledgers for line in ledger.lines)
    assert {row.tensor for row in report.rows if row.check == "known_differences"} == {
        difference.id for difference in pair_of(name).known_differences
    }
    assert sum(row.compared for row in report.rows) >= 30


@pytest.mark.parametrize("section", SECTIONS)
def test_the_page_has_the_numbers(section):
    """Differences to their last digit; what is explained is rounding and another machine's business."""
    lines = {}
    for line in ledger_of(section).lines:
        lines.setdefault(group_of(line.tensor), []).append(line)
    differences, known = tables(section)
    for group, apart, explained, bound, equal, because in differences:
        mine = lines[group]
        assert size(max(line.as_it_is or 0.0 for line in mine)) == apart, group
        assert max(line.explained or 0.0 for line in mine) <= float(bound)
        assert (float(explained) <= float(bound), equal) == (True, "yes")
        order = list(ledger_of(section).known_differences)
        names = sorted({name for line in mine for name in line.because}, key=order.index)
        assert ", ".join(names) == because, group
    told = {row[0]: row[2:] for row in known}
    for name, text in ledger_of(section).known_differences.items():
        found = ledger_of(section).effects(name)
        sizes = [size(found[kind]) if kind in found else "" for kind in KINDS]
        assert told.get(name, [""] * len(KINDS)) == sizes, name
        assert name not in told or text == next(row[1] for row in known if row[0] == name)


def test_the_page_sums_up_what_its_tables_have():
    top = PAGE.partition("\n## ")[0].splitlines()
    overview = cells([line for line in top if line.startswith("|")][2:])
    assert len(overview) == len(SECTIONS)
    for section, row in zip(SECTIONS, overview):
        differences, known = tables(section)
        worst = {group: apart for group, apart, *_ in differences}
        assert float(row[4]) == pytest.approx(float(worst["loss, total"]), rel=0.05)
        assert float(row[6]) == max(float(explained) for _, _, explained, *_ in differences)
        assert (row[2].strip("`"), int(row[7])) == (SECTIONS[section][1].removesuffix("_every_row"), len(known))


def test_the_page_has_the_settings_of_the_scripts_and_the_prototypes():
    eagle, hass = (
        read_trace(PAIRS / "recorded" / place).configuration for place in ("eagle/eagle3_fp32_k3", "hass/hass_fp32_k3")
    )
    prototypes = [
        configuration(pair_of(name).find_cases(None)[0].source) for name in ("eagle.py:EAGLE", "hass.py:HASS")
    ]
    engine, config = eagle["ds_config"], hass["train_config"]
    optimizer, plan = engine["optimizer"]["params"], engine["scheduler"]["params"]
    betas = ", ".join(f"{one:g}" for one in prototypes[0]["betas"])
    said = [
        f"| TTT steps | {eagle['length']} | {prototypes[0]['ttt_steps']} by default |",
        f"| weights of the steps' losses | {', '.join(f'{weight:g}' for weight in eagle['ploss_weight'])} |",
        f"| gradients clipped | norm {engine['gradient_clipping']} | norm 1.0 |",
        f"| betas | {', '.join(f'{one:g}' for one in optimizer['betas'])} | {betas} |",
        f"| weight decay | {optimizer['weight_decay']} | {prototypes[0]['weight_decay']} |",
        f"{plan['warmup_max_lr']} in {plan['warmup_num_steps']} of {plan['total_num_steps']} |",
        f"ZeRO-{engine['zero_optimization']['stage']} |",
        f"| longest sample | {eagle['train_config']['max_len']} | {prototypes[0]['max_len']} |",
        f"{engine['train_micro_batch_size_per_gpu']}, {engine['gradient_accumulation_steps']} accumulated |",
        f"| base of the rotary frequencies | {eagle['rope_base']} |",
        f"stops: `{eagle['unmodified']}`",
        f"stops: `{eagle['config_refusal'].replace('`', '')}`",
        f"{len(eagle['without gradient when checkpointed'])} parameters get no gradient: fc.weight, layers.0.hidden",
        f"v_w {config['v_w']}, p_w {config['p_w']}, topk_w {config['topk_w']} |",
        f"| gradients clipped | value {hass['clip_value']} |",
        f"| betas | {config['b1']}, {config['b2']} | {', '.join(f'{one:g}' for one in prototypes[1]['betas'])} |",
        f"| longest sample | {config['max_len']} | {prototypes[1]['max_len']} |",
        f"| noise | {config['noise']}, {config['std']} |",
        f"| base of the rotary frequencies | {hass['rope_base']:g} |",
        *(f"Arranged from outside: {'; '.join(one['arranged'])}." for one in (eagle, hass)),
    ]
    assert [line for line in said if line not in PAGE] == []
    assert all(pair_of(name).remedy.split()[-1] in PAGE for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_without_causes_the_formulas_are_the_prototype_s_and_speculators_the_sum_of_its_steps(name):
    case = pair_of(name).find_cases(None)[0]
    with pair_of(name).port.trace(case) as ran:
        found = ran.trace.tensors
    wanted = load_recorded(case.source).tensors
    if "SPECULATORS" in name:
        wanted = {"mb0.loss": torch.stack([found[f"mb0.step{s}.loss"] for s in range(3)]).sum(0)}
    shared = [one for one in found if one in wanted and not one.endswith((".hidden", ".logits"))]
    assert len(shared) > 12 or "SPECULATORS" in name
    for one in shared:
        mine, theirs = (values[one].double().reshape(-1) for values in (found, wanted))
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)


def one_entry(values):
    """One entry moved by a hundredth of the largest."""
    moved = values.clone()
    moved.view(-1)[values.abs().argmax()] *= 1.01
    return moved


@pytest.mark.parametrize(
    ("name", "tensor"),
    [
        ("hass.py:HASS", "mb0.step1.hidden"),
        ("hass.py:HASS", "mb0.grad.fc.bias"),
        ("eagle.py:EAGLE", "mb0.features"),
        ("eagle.py:EAGLE", "mb0.step0.logits"),
        ("eagle.py:SPECULATORS", "mb0.grad.midlayer.mlp.up_proj.weight"),
    ],
)
def test_a_fault_in_the_original_is_left_and_named(name, tensor):
    pair = pair_of(name)
    case = pair.find_cases(None)[0]
    with pair.original.trace(case) as ran:
        tensors = {**ran.trace.tensors, tensor: one_entry(ran.trace.tensors[tensor])}
    tampered = replace(pair, original=TraceSide(replace(ran.trace, tensors=tensors)), cases=[case])
    report = run_pair(tampered, Options(keyword=case.name))
    expected = {tensor.replace("midlayer", "layers.0")}
    assert {row.tensor for row in report.rows if row.compared and not row.passed} == expected
    assert {line.tensor for line in report.ledgers[0].lines if line.left} == expected


def test_a_cause_that_is_missing_leaves_what_it_explains():
    pair = pair_of("hass.py:HASS")
    known = [difference for difference in pair.known_differences if difference.id != "smooth-l1"]
    (ledger,) = run_pair(replace(pair, known_differences=known)).ledgers
    left = {line.tensor for line in ledger.lines if line.left}
    assert {"mb0.loss", "mb0.grad.fc.weight"} <= left
    assert not {"mb0.step2.hidden", "mb0.step2.logits"} & left


@pytest.mark.parametrize("name", ["eagle.py:EAGLE", "hass.py:HASS"])
def test_another_file_is_named_and_never_run(name, tmp_path):
    pair = pair_of(name)
    with pytest.raises(InputError, match="SHA-256: found missing"):
        run_pair(pair, Options(original=tmp_path))
    for file in ("eagle/traineagle3/main.py", "train/__init__.py"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(RUNS)
    with pytest.raises(InputError, match=f"SHA-256: found {sha256(RUNS.encode()).hexdigest()}, expected .* at "):
        run_pair(pair, Options(original=tmp_path))


@pytest.mark.parametrize(
    ("name", "checkout"),
    [("eagle.py:EAGLE", "eagle_dir"), ("eagle.py:SPECULATORS", "eagle_dir"), ("hass.py:HASS", "hass_dir")],
)
def test_the_script_of_a_checkout_computes_what_was_recorded(name, checkout, request):
    pair = pair_of(name)
    live = pair.at(request.getfixturevalue(checkout), None)
    for case in pair.find_cases(None):
        with pair.original.trace(case) as kept, live.original.trace(case) as ran:
            assert ran.trace.configuration == json.loads(json.dumps(kept.trace.configuration))
            assert ran.trace.tensors.keys() == kept.trace.tensors.keys()
            for key, value in ran.trace.tensors.items():
                torch.testing.assert_close(value, kept.trace.tensors[key], rtol=1e-4, atol=1e-6)
