"""Write the table of ``README.md`` anew: ``python examples/llama_3_1_8b/estimate.py``; takes two minutes."""

from __future__ import annotations

from pathlib import Path

from ports.eagle3.config import load_draft_config as eagle3_config
from ports.estimate import training_memory
from ports.files import gigabytes
from ports.generate.records import geometry_of
from ports.hass.config import load_draft_config as hass_config
from ports.verifier.loading import states_bytes, verifier_parameters

HERE = Path(__file__).parent
PAGE, VERIFIER = HERE / "README.md", str(HERE / "verifier")
BEGIN, END = "<!-- estimates -->", "<!-- /estimates -->"
RECIPES = [("eagle3", 1), ("eagle3", 8), ("hass", 1), ("hass", 8)]
SAMPLES_PER_GPU, LOAD = {"eagle3": 1, "hass": 2}, {"eagle3": eagle3_config, "hass": hass_config}
DIALOGUES, TOKENS, LONGEST, SUPERVISED, TTT_STEPS = 68001, 1000, 8192, 0.6, 3
BATCH_TOKENS = 16384
"""Of a forward in generation."""

COLUMNS = ("recipe", "records on disk", "generation, per GPU", "training, per GPU", "training --online, per GPU")


def bytes_of(algorithm: str, gpus: int) -> tuple[int, int, int, int]:
    """Of all records, of a device in generation and in training, and of the verifier that is in the former."""
    shape = geometry_of(algorithm, VERIFIER)
    verifier = shape.item_bytes * verifier_parameters(VERIFIER)
    config = LOAD[algorithm](str(HERE / f"draft_{algorithm}.json"), VERIFIER, TTT_STEPS)
    training = training_memory(config, TTT_STEPS, SAMPLES_PER_GPU[algorithm] * LONGEST, SUPERVISED, gpus)
    states = states_bytes(VERIFIER, shape.item_bytes, BATCH_TOKENS)
    return DIALOGUES * shape.bytes_of(TOKENS), verifier + states, sum(training.values()), verifier


def row(algorithm: str, gpus: int) -> str:
    """One line of the table."""
    records, generation, training, verifier = bytes_of(algorithm, gpus)
    sizes = map(gigabytes, (records, generation, training, training + verifier))
    return f"| {algorithm}, {gpus} GPU{'s' * (gpus > 1)} | {' | '.join(sizes)} |"


def table() -> str:
    """All recipes, computed."""
    head = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    return "\n".join([*head, *(row(algorithm, gpus) for algorithm, gpus in RECIPES)])


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")
