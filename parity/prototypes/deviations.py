"""The ledger: where the prototypes depart from what their papers, Speculators or a reader would expect.

Each entry names the port's choice and the test that shows the deviation firing.
"""

from __future__ import annotations

from parity.verdict import Deviation

SHOWN_IN = "tests/parity/prototypes/test_deviations.py"


def deviation(id: str, where: str, effect: str, choice: str) -> Deviation:
    """An entry, shown by the test that is named after it."""
    return Deviation(id, where, effect, choice, f"{SHOWN_IN}::test_{id.replace('-', '_')}")


LEDGER: tuple[Deviation, ...] = (
    deviation(
        "own-position-kv",
        "TTT attention, steps 2 and later",
        "keys and values of earlier draft steps are read at the query's own position; every position's logits differ "
        "from what a served chain computes, and newer verifier features leak in",
        "ttt_alignment=prototype reproduces it; ttt_alignment=chain equals Speculators' forward",
    ),
    deviation(
        "leading-rows",
        "loss, rows p < step",
        "rows that never advanced are trained too; small, since the mask is seldom on there",
        "prototype alignment keeps them, chain alignment drops them and divides by what is left",
    ),
    deviation(
        "unshifted-mask",
        "loss mask",
        "the mask is l[p] although ids and targets are shifted to p + 1; one position per answer",
        "prototype alignment keeps it, chain alignment shifts the mask",
    ),
    deviation(
        "accumulation-wipe",
        "loop without DeepSpeed",
        "gradients are zeroed at the top of every micro-batch: an update is 1/a of the last micro-batch alone",
        "accumulated gradients equal the big batch's; only the reference reproduces the wipe",
    ),
    deviation(
        "ddp-bf16-crash",
        "Eagle3 in bfloat16 without DeepSpeed",
        "float32 activations meet a bfloat16 head and the script stops",
        "autocast with float32 weights trains",
    ),
    deviation(
        "embed-decay",
        "Eagle3 under DeepSpeed",
        "the embedding is in the optimizer without ever getting a gradient; its float32 master shrinks by weight decay",
        "frozen parameters are not given to the optimizer",
    ),
    deviation(
        "rank-normalisation",
        "loss on several processes",
        "every process divides by its own rows in the loss and gradients are averaged: rows of a process that has few "
        "of them weigh more",
        "loss_normalisation=rank reproduces it; loss_normalisation=global equals one process with the whole batch",
    ),
    deviation(
        "epoch-plus-one",
        "loop",
        "--epoch n makes n + 1 passes and the schedule is made to match",
        "kept, documented in --help",
    ),
    deviation(
        "short-noise",
        "noise",
        "uniform noise is scaled by 512 / T: a sample of 20 tokens gets +-2.56",
        "kept; --no-noise switches it off",
    ),
    deviation(
        "walk-order",
        "data",
        "samples come in the file system's order and every file counts as one",
        "*.ckpt and *.safetensors files in natural order",
    ),
    deviation(
        "pickle-as-safetensors",
        "saving",
        "a torch pickle is written under a .safetensors name; no reader of safetensors opens it",
        "a Speculators directory with a real safetensors file",
    ),
    deviation(
        "no-resume",
        "Eagle3",
        "--ckpt_path looks for files the script never writes, and no optimizer state is saved",
        "--ckpt_path DIR or auto goes on from a directory the port wrote, to the bit",
    ),
    deviation(
        "one-layer",
        "model",
        "the Eagle3 prototype stops with two layers; HASS's gives every layer the history of layer 0",
        "refused in prototype alignment, supported in chain alignment",
    ),
    deviation(
        "train-only",
        "model",
        "the prototype's forward fails in eval mode",
        "both modes work and give the same numbers",
    ),
    deviation(
        "unlogged-metrics",
        "loop",
        "a metrics dict is built at every batch and sent nowhere",
        "logged under its names at every micro-batch",
    ),
    deviation(
        "hard-coded-offsets",
        "data generation, Llama",
        "the loss mask is cut at sums of token counts and constants that fit automatic BOS and one header: without "
        "automatic BOS every later answer is masked wrongly; a dialogue that the user ends keeps three more positions",
        "--loss_mask exact takes the answers' own tokens; --loss_mask prototype reproduces the offsets",
    ),
    deviation(
        "first-match-mask",
        "data generation, Qwen and Mistral",
        "an answer is marked where its tokens occur first: a repeated answer is in the loss once, and the script stops "
        "where an answer tokenizes differently by itself",
        "--loss_mask exact marks every answer where it stands; --loss_mask prototype reproduces the search",
    ),
    deviation(
        "leading-space",
        "data generation, ShareGPT",
        "a space is put before every answer; Llama's template trims it, Qwen's and Mistral's keep it, so that the "
        "draft learns from answers that the verifier would not begin like that",
        "kept with --prototype FAMILY or --leading_space, else left out",
    ),
    deviation(
        "inclusive-range",
        "data generation",
        "--samples n takes n + 1 rows, and stops where the data set has fewer",
        "kept; a shorter data set is taken as it is",
    ),
    deviation(
        "unstable-zipf",
        "vocabulary map",
        "tokens of equal count come in the order of an unstable sort, so that the map depends on the numpy build; "
        "files are counted in os.walk order",
        "Speculators' builder, ties by id, files in natural order; a recorded map is data: --t2d and --d2t take it",
    ),
)


def as_markdown() -> str:
    """The ledger as the page ``docs/deviations.md``."""
    lines = ["# Deviation ledger", "", __doc__.strip().replace("\n", " "), "", "Written by `python -m docs.tables`."]
    for entry in LEDGER:
        lines += ["", f"## {entry.id}", "", f"Where: {entry.where}.", "", f"The prototype: {entry.effect}.", ""]
        lines += [f"The port: {entry.choice}.", "", f"Shown by `{entry.test}`."]
    return "\n".join(lines) + "\n"
