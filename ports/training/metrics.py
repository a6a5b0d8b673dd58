"""What is logged at every micro-batch and printed after every pass, under the prototypes' names."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import astuple, dataclass

from ports.training.loss import Hits


def log_entry(lr: float, loss: float, hits: Hits, extra: dict[str, float] | None = None) -> dict[str, float]:
    """The prototypes' per-batch dict, empty where no row is in the loss; ``lr`` is the scheduler's next."""
    rows = int(hits.rows)
    if rows == 0:
        return {}
    top = {f"train/top_{k + 1}_acc": int(count) / rows for k, count in enumerate(hits.top)}
    return {"train/lr": lr, **(extra or {}), "train/loss": loss, "train/acc": int(hits.correct) / rows, **top}


@dataclass
class PassTotals:
    """Sums over one pass on one process, or on all.

    ``skipped`` counts bad records, ``empty`` those without a row in the loss.
    """

    loss: float = 0.0
    batches: int = 0
    correct: int = 0
    rows: int = 0
    skipped: int = 0
    empty: int = 0

    @classmethod
    def together(cls, processes: Iterable[PassTotals]) -> PassTotals:
        """The sums of several processes."""
        return cls(*map(sum, zip(*map(astuple, processes))))

    def add(self, loss: float, hits: Hits) -> None:
        self.loss += loss
        self.batches += 1
        self.correct += int(hits.correct)
        self.rows += int(hits.rows)

    @property
    def mean(self) -> float:
        """Mean loss over the batches; NaN without any."""
        return self.loss / self.batches if self.batches else float("nan")

    def lines(self, epoch: int, last_epoch: int) -> list[str]:
        """The prototypes' two lines, and a third if records were skipped.

        ``last_epoch`` is ``--epoch``, so the last pass reads one past it.
        """
        accuracy = 100 * self.correct / self.rows if self.rows else 0.0
        skipped = [f"Skipped {self.skipped} bad records"] if self.skipped else []
        return [
            f"Epoch [{epoch + 1}/{last_epoch}], Loss: {self.mean:.4f}",
            f"Train Accuracy: {accuracy:.2f}%",
            *skipped,
        ]
