"""From results to ``docs/mutation.md``: rates by module, who killed, who lived and why."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined
from scipy.stats import beta

from mutation.explanations import Explanation, explain, load
from mutation.results import Results
from mutation.rules import RULES
from mutation.scope import LEFT_OUT_FILES, LEFT_OUT_NAMES, SIZES

TEMPLATE = Path(__file__).with_name("page.md.j2")
CONFIDENCE = 0.95

Records = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Rate:
    """What became of the mutants of one module or group; ``none`` compile to no other program."""

    name: str
    possible: int
    made: int
    none: int
    killed: int
    survived: int
    equivalent: int

    @property
    def judged(self) -> int:
        return self.killed + self.survived

    @property
    def percent(self) -> str:
        return f"{100 * self.killed / self.judged:.1f}" if self.judged else "–"

    @property
    def score(self) -> str:
        """The rate of those that are not equivalent, which nothing could kill."""
        able = self.judged - self.equivalent
        return f"{100 * self.killed / able:.1f}" if able else "–"

    @property
    def bound(self) -> str:
        """The score's one-sided 95 % lower bound, these being a draw from all mutants (Clopper, Pearson 1934)."""
        if not self.killed:
            return "–"
        low = 100 * float(beta.ppf(1 - CONFIDENCE, self.killed, self.survived - self.equivalent + 1))
        return f"{low:.1f}"


def write_page(
    results: Results, explanations: Sequence[Explanation] | None = None, fresh: Results | None = None
) -> tuple[str, list[dict[str, Any]]]:
    """The page, and the survivors that nothing explains; ``fresh`` are results of mutants that no check knew."""
    entries = load() if explanations is None else explanations
    modules, records = results.about["modules"], _chosen(results)
    others = _chosen(fresh) if fresh else []
    told: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in sorted([*records, *others], key=lambda each: (each["file"], each["line"])):
        if record["outcome"] != "survived":
            continue
        entry = explain(record, entries)
        told[entry.why if entry else ""].append(record)
        if entry and entry.equivalent:
            record["outcome"] = "equivalent"
    unexplained = told.pop("", [])
    page = _render(
        fresh=_total(fresh.about["modules"], others) if fresh else None,
        about=results.about,
        groups=[*_rates(modules, records, lambda file: modules[file]["group"]), _total(modules, records)],
        files=_rates(modules, records, lambda file: file),
        killers=_killers(records).most_common(),
        told=sorted(told.items(), key=lambda each: -len(each[1])),
        unexplained=unexplained,
        left_out=_left_out(modules),
        rules=RULES,
        sizes=SIZES,
        files_left_out=LEFT_OUT_FILES,
        names_left_out=LEFT_OUT_NAMES,
    )
    return page, unexplained


def _chosen(results: Results) -> list[dict[str, Any]]:
    """Copies of the records of the mutants that the last run chose."""
    return [dict(results.records[key]) for key in results.about["chosen"] if key in results.records]


def unused(every: Iterable[Results], entries: Sequence[Explanation]) -> list[Explanation]:
    """Entries that explain no survivor."""
    survivors = [record for results in every for record in _chosen(results) if record["outcome"] == "survived"]
    used = {id(explain(record, entries)) for record in survivors}
    return [entry for entry in entries if id(entry) not in used]


def one_line(record: dict[str, Any]) -> str:
    """A mutant as a person looks it up."""
    before, after = ([line[1:].strip() for line in record["change"] if line[0] == mark] for mark in "-+")
    return f"{record['file']}:{record['line']} `{' '.join(before)}` → `{' '.join(after)}`"


def _rates(modules: dict[str, Any], records: Records, name_of: Any) -> list[Rate]:
    names = list(dict.fromkeys(name_of(file) for file in modules))
    return [_rate(name, [file for file in modules if name_of(file) == name], modules, records) for name in names]


def _total(modules: dict[str, Any], records: Records) -> Rate:
    return _rate("all", list(modules), modules, records)


def _rate(name: str, files: list[str], modules: dict[str, Any], records: Records) -> Rate:
    outcomes = Counter(record["outcome"] for record in records if record["file"] in files)
    return Rate(
        name=name,
        possible=sum(modules[file]["possible"] for file in files),
        made=sum(modules[file]["made"] for file in files),
        none=outcomes["no mutation"],
        killed=outcomes["killed"],
        survived=outcomes["survived"] + outcomes["equivalent"],
        equivalent=outcomes["equivalent"],
    )


def _killers(records: Records) -> Counter[str]:
    """How many mutants each check was the first to kill; an exception counts for the part it came out of."""
    return Counter(record.get("check", "") for record in records if record["outcome"] == "killed")


def _left_out(modules: dict[str, Any]) -> Counter[str]:
    total = Counter[str]()
    for module in modules.values():
        total.update(module["left_out"])
    return total


def _render(**values: Any) -> str:
    blocks = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    environment = Environment(undefined=StrictUndefined, **blocks)
    environment.filters["one_line"] = one_line
    environment.filters["thousands"] = lambda number: f"{number:,}"
    return environment.from_string(TEMPLATE.read_text()).render(**values)
