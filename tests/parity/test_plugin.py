"""The pytest plugin in sessions of its own."""

from __future__ import annotations

import pytest

from parity import plugin

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
    return pytester.runpytest_inprocess("-rs", "--strict-markers", *LEAN, *options)


REMEDIES = {
    "prototype": "no checkout of the prototypes: git clone *--prototype DIR or PARITY_PROTOTYPE",
    "eagle": "no checkout of EAGLE: git clone *git checkout cb7e0841, then --eagle DIR or PARITY_EAGLE",
    "hass": "no checkout of HASS: git clone *git checkout 38922e43, then --hass DIR or PARITY_HASS",
    "deepspeed": "deepspeed is not installed: *pip install*",
    "gpu": "no CUDA device: run on a machine with one",
    "vllm": "vllm is not installed: *pip install*",
}
MARKED = "import pytest\n" + "".join(f"@pytest.mark.{name}\ndef test_{name}(): pass\n" for name in REMEDIES)


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


@pytest.mark.parametrize("there", [False, True], ids=["nothing there", "all there"])
def test_what_cannot_run_is_skipped_with_the_remedy(
    there: bool, pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plugin, "_has_gpu", lambda: there)
    monkeypatch.setattr(plugin, "find_spec", lambda name: there or None)
    given = [word for name in plugin.CHECKOUTS for word in (f"--{name}", "checkout")] if there else []
    result = run(pytester, MARKED + "def test_plain(): pass\n", *given)
    result.assert_outcomes(passed=1 + len(REMEDIES) * there, skipped=len(REMEDIES) * (not there))
    if not there:
        result.stdout.fnmatch_lines_random([f"SKIPPED*{remedy}" for remedy in REMEDIES.values()])


def test_a_checkout_is_the_environment_variable_s_or_its_fixture_skips(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PARITY_EAGLE", "from/the/environment")
    source = """
        def test_eagle(eagle_dir): assert eagle_dir.as_posix() == "from/the/environment"
        def test_hass(hass_dir): assert False
        def test_prototype(prototype_dir): assert False
    """
    result = run(pytester, source)
    result.assert_outcomes(passed=1, skipped=2)
    result.stdout.fnmatch_lines_random(["SKIPPED*no checkout of HASS*", "SKIPPED*no checkout of the prototypes*"])


@pytest.mark.parametrize(("options", "expected"), [([], "fixtures.RECORDINGS"), (["--recordings", "a"], "Path('a')")])
def test_recordings_are_the_shipped_ones_or_those_given(
    options: list[str], expected: str, pytester: pytest.Pytester
) -> None:
    source = "from pathlib import Path\nfrom parity import fixtures\n"
    source += f"def test_one(recordings_dir): assert recordings_dir == {expected}\n"
    run(pytester, source, *options).assert_outcomes(passed=1)


COMPARING = """
    from parity.verdict import Row, Status

    def test_one(compared):
        for run, status in (("port", Status.PASSED), ("port", Status.FAILED), ("reference", Status.PASSED)):
            compared.append(Row("forward", "one", run, "logits", "mb0.a", 2e-6, 1e-5, status))
"""


def test_what_was_compared_is_one_line(pytester: pytest.Pytester) -> None:
    result = run(pytester, COMPARING)
    result.assert_outcomes(passed=1)
    verdict = "FAIL: port against prototype 1 of 2; reference against prototype 1 of 1"
    result.stdout.fnmatch_lines(["*= parity =*", verdict])


def test_without_comparisons_there_is_no_line(pytester: pytest.Pytester) -> None:
    run(pytester, "def test_one(): pass\n").stdout.no_fnmatch_line("*= parity =*")
