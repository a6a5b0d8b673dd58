"""The pytest plugin in sessions of its own."""

from __future__ import annotations

from typing import Any

import pytest

from parity import plugin
from parity.verdict import Row, Status

pytest_plugins = ["pytester"]
LEAN = [
    word
    for name in ("cacheprovider", "hypothesispytest", "anyio", "pytest_cov", "xdist")
    for word in ("-p", f"no:{name}")
]
"""Other people's plugins only cost time here."""


@pytest.fixture(autouse=True)
def no_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in plugin.CHECKOUTS:
        monkeypatch.delenv(f"PARITY_{name.upper()}", raising=False)


def run(pytester: pytest.Pytester, source: str, *options: str) -> pytest.RunResult:
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess("-rs", *LEAN, *options)


def test_options_are_explained(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--help")
    text = " ".join(result.stdout.str().split())
    assert "--pair=PAIR" in text
    assert "--prototype=PROTOTYPE, --original=PROTOTYPE checkout of the prototypes" in text
    assert "--recordings=RECORDINGS folder of recorded cases; default: those shipped" in text


def test_markers_are_declared(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess("--markers")
    for name in plugin.MARKERS:
        result.stdout.fnmatch_lines([f"@pytest.mark.{name}: *"])
    marked = "import pytest\n@pytest.mark.gpu\ndef test_one(): pass\n"
    run(pytester, marked, "--strict-markers").assert_outcomes(
        passed=0 if not plugin._has_gpu() else 1, skipped=int(not plugin._has_gpu())
    )


BESIDE = """
import torch, helper_of_a_pair
from parity import Case, Pair, Side
SIDE = Side(helper_of_a_pair.build)
ONE = Pair("one", SIDE, SIDE, [Case("one", [torch.ones(1, 2)], steps=1)])
"""


def test_a_pair_imports_from_its_own_folder(pytester: pytest.Pytester) -> None:
    folder = pytester.mkdir("pairs")
    (folder / "helper_of_a_pair.py").write_text("import torch\ndef build(): return torch.nn.Linear(2, 1)\n")
    (folder / "mine.py").write_text(BESIDE)
    result = pytester.runpytest_inprocess(*LEAN, "--import-mode=importlib", "--pair", "pairs/mine.py:ONE")
    assert result.ret == 0, result.stdout.str()[-2000:]


@pytest.mark.parametrize("marker", ["prototype", "eagle", "hass", "deepspeed", "vllm", "gpu"])
def test_what_cannot_run_is_skipped_with_the_remedy(
    marker: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_has_gpu", lambda: False)
    monkeypatch.setattr(plugin, "find_spec", lambda name: None)
    source = f"import pytest\n@pytest.mark.{marker}\ndef test_one(): assert False\ndef test_two(): pass\n"
    result = run(pytester, source)
    result.assert_outcomes(skipped=1, passed=1)
    remedy = {
        "prototype": "no checkout of the prototypes: git clone *--prototype DIR or PARITY_PROTOTYPE",
        "eagle": "no checkout of EAGLE: git clone *git checkout cb7e0841, then --eagle DIR or PARITY_EAGLE",
        "hass": "no checkout of HASS: git clone *git checkout 38922e43, then --hass DIR or PARITY_HASS",
        "gpu": "no CUDA device: run on a machine with one",
    }.get(marker, f"{marker} is not installed: *pip install*")
    result.stdout.fnmatch_lines([f"SKIPPED*{remedy}"])


def test_what_can_run_runs(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plugin, "_has_gpu", lambda: True)
    monkeypatch.setattr(plugin, "find_spec", lambda name: object())
    source = "import pytest\n" + "".join(f"@pytest.mark.{name}\ndef test_{name}(): pass\n" for name in plugin.MARKERS)
    given = [word for name in plugin.CHECKOUTS for word in (f"--{name}", "checkout")]
    run(pytester, source, *given).assert_outcomes(passed=len(plugin.MARKERS))


@pytest.mark.parametrize("name", list(plugin.CHECKOUTS))
def test_the_environment_variable_is_the_option(
    name: str, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"PARITY_{name.upper()}", "from/the/environment")
    source = f"""
        import pytest
        @pytest.mark.{name}
        def test_one({name}_dir):
            assert {name}_dir.as_posix() == "from/the/environment"
    """
    run(pytester, source).assert_outcomes(passed=1)


@pytest.mark.parametrize("name", list(plugin.CHECKOUTS))
def test_the_checkout_fixture_skips_without_one(name: str, pytester: pytest.Pytester) -> None:
    result = run(pytester, f"def test_one({name}_dir): assert False\n")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*git clone*"])


def test_recordings_are_the_shipped_ones_or_those_given(pytester: pytest.Pytester) -> None:
    source = "from parity import fixtures\ndef test_one(recordings_dir): assert recordings_dir == fixtures.RECORDINGS\n"
    run(pytester, source).assert_outcomes(passed=1)
    source = "def test_one(recordings_dir): assert recordings_dir.as_posix() == 'mine'\n"
    run(pytester, source, "--recordings", "mine").assert_outcomes(passed=1)


COMPARING = """
    from parity.verdict import Row, Status

    def row(run, tensor, measured, allowed, status=Status.PASSED):
        return Row("forward", "one", run, "logits", tensor, measured, allowed, status)

    def test_one(compared):
        compared.append(row("port", "mb0.a", 2e-6, 1e-5))
        compared.append(row("port", "mb0.b", 6e-6, 1e-5))

    def test_two(compared):
        compared.append(row("port", "mb0.c", 0.0, 0.0))
        compared.append(row("reference", "mb0.d", None, 1e-5, Status.FAILED))
"""


def test_what_was_compared_is_summed_up(pytester: pytest.Pytester) -> None:
    result = run(pytester, COMPARING)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        [
            "*= parity =*",
            "port: 3 comparisons, 0 not passed; worst 0.6 of its tolerance: forward, one, mb0.b",
            "reference: 1 comparisons, 1 not passed",
        ]
    )


def test_without_comparisons_there_is_no_summary(pytester: pytest.Pytester) -> None:
    run(pytester, "def test_one(): pass\n").stdout.no_fnmatch_line("*= parity =*")


def row(measured: float | None, allowed: float | None, status: Status = Status.PASSED) -> Any:
    return Row("forward", "one", "port", "q", "t", measured, allowed, status)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ([row(1.0, 4.0)], "port: 1 comparisons, 0 not passed; worst 0.25 of its tolerance: forward, one, t"),
        ([row(0.0, 0.0), row(None, None)], "port: 2 comparisons, 0 not passed"),
        (
            [row(8.0, 4.0, Status.FAILED)],
            "port: 1 comparisons, 1 not passed; worst 2 of its tolerance: forward, one, t",
        ),
        (
            [row(0.0, 1.0, Status.BLOCKED)],
            "port: 1 comparisons, 1 not passed; worst 0 of its tolerance: forward, one, t",
        ),
    ],
)
def test_summary_lines(rows: list[Any], line: str) -> None:
    assert plugin.summary(rows) == [line]


def test_the_worst_is_not_hidden_by_a_nan() -> None:
    nan = float("nan")
    rows = [row(nan, 1.0, Status.FAILED), row(0.5, 1.0)]
    assert "worst nan" in plugin.summary(rows)[0]
    assert "worst nan" in plugin.summary(rows[::-1])[0]
