"""The pytest plugin in sessions of its own."""

pytest_plugins = ["pytester"]
LEAN = [
    word
    for name in ("cacheprovider", "hypothesispytest", "anyio", "pytest_cov", "xdist")
    for word in ("-p", f"no:{name}")
]
"""Other people's plugins only cost time here."""


def run(pytester, source, *options):
    pytester.makepyfile(source)
    return pytester.runpytest_inprocess("-rs", "--strict-markers", *LEAN, *options)


BESIDE = """
import torch, helper_of_a_pair
from parity import Case, Pair, Side
SIDE = Side(helper_of_a_pair.build)
ONE = Pair("one", SIDE, SIDE, [Case("one", [torch.ones(1, 2)], steps=1)])
"""


def test_a_pair_imports_from_its_own_folder(pytester):
    folder = pytester.mkdir("pairs")
    (folder / "helper_of_a_pair.py").write_text("import torch\ndef build(): return torch.nn.Linear(2, 1)\n")
    (folder / "mine.py").write_text(BESIDE)
    result = pytester.runpytest_inprocess(*LEAN, "--import-mode=importlib", "--pair", "pairs/mine.py:ONE")
    assert result.ret == 0, result.stdout.str()[-2000:]


COMPARING = """
    from parity.verdict import Row, Status

    def test_one(compared):
        for run, status in (("port", Status.PASSED), ("port", Status.FAILED), ("reference", Status.PASSED)):
            row = Row("forward", "one", run, "logits", "mb0.a", 2e-6, 1e-5, status, beside=run == "reference")
            compared.append(row)
"""


def test_what_was_compared_is_one_line(pytester):
    result = run(pytester, COMPARING)
    result.assert_outcomes(passed=1)
    verdict = "FAIL: 1 case; 1 of 2 quantities of the prototype matched; reference 1 of 1"
    result.stdout.fnmatch_lines(["*= parity =*", verdict])


def test_without_comparisons_there_is_no_line(pytester):
    run(pytester, "def test_one(): pass\n").stdout.no_fnmatch_line("*= parity =*")
