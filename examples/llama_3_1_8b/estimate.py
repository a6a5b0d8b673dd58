"""Write the table of ``README.md`` anew: ``python examples/llama_3_1_8b/estimate.py``; takes two minutes."""

from __future__ import annotations

from pathlib import Path

from ports.estimate import Estimate, EstimateSettings, estimate
from ports.files import gigabytes

HERE = Path(__file__).parent
PAGE = HERE / "README.md"
BEGIN, END = "<!-- estimates -->", "<!-- /estimates -->"
RECIPES = [("eagle3", 1), ("eagle3", 8), ("hass", 1), ("hass", 8)]
SAMPLES_PER_GPU = {"eagle3": 1, "hass": 2}
COLUMNS = ("recipe", "records on disk", "generation, per GPU", "training, per GPU", "training --online, per GPU")


def settings_of(algorithm: str, gpus: int) -> EstimateSettings:
    """What ``run.sh`` does with that many GPUs."""
    return EstimateSettings.model_validate(
        {
            "algorithm": algorithm,
            "model_path": str(HERE / "verifier"),
            "configpath": str(HERE / f"draft_{algorithm}.json"),
            "gpus": gpus,
            "bs": SAMPLES_PER_GPU[algorithm],
        }
    )


def row(algorithm: str, gpus: int, found: Estimate) -> str:
    """One line of the table."""
    generation, training = found.verifier + found.states, found.training_total
    sizes = (found.records, generation, training, training + found.verifier)
    return f"| {algorithm}, {gpus} GPU{'s' * (gpus > 1)} | {' | '.join(map(gigabytes, sizes))} |"


def table() -> str:
    """All recipes, computed."""
    head = [f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    rows = [row(algorithm, gpus, estimate(settings_of(algorithm, gpus))) for algorithm, gpus in RECIPES]
    return "\n".join(head + rows)


if __name__ == "__main__":
    before, _, rest = PAGE.read_text().partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table()}\n\n{END}{rest.partition(END)[2]}")
