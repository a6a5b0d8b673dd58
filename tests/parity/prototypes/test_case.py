"""Reading a case: every malformed one is refused by name, every well-formed one is read whole."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from parity.errors import InputError
from parity.prototypes.case import find_cases, read_case
from tests.parity.folders import META, make_fixture, with_flags, write_meta

REQUIRED = [
    *("case", "which", "dtype", "argv", "noise", "shuffle", "total_steps", "warm_steps"),
    *("sample_index_order", "samples_files", "initial", "prints"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recordings")
    make_fixture(folder)
    return folder


def test_what_is_recorded_is_read(root):
    case = read_case(write_meta(root / "one", with_flags("--lr", "0.5", "--forward_num_total", "7")))
    assert (case.name, case.algorithm, case.dtype) == ("one", "eagle3", "fp32")
    assert (case.lr, case.bs, case.epoch, case.ttt_steps) == (0.5, 2, 1, 7)
    assert case.configpath == root / "fixture" / "draft_eagle3.json"
    assert case.verifier == root / "fixture" / "verifier"
    assert case.order == (0, 1, 2, 0)
    assert case.seed is None
    assert case.uniforms is None


def test_flags_left_out_are_the_prototypes_defaults(root):
    meta = {**META, "argv": META["argv"][:3], "samples_files": list("abcd"), "sample_index_order": [0, 1, 2, 3] * 41}
    case = read_case(write_meta(root / "defaults", meta))
    found = (case.lr, case.bs, case.accumulation, case.epoch, case.topk, case.ttt_steps)
    assert found == (3e-5, 4, 1, 40, 10, 3)


def test_noise_names_its_draws_and_other_fields_are_kept(root):
    case = read_case(write_meta(root / "noisy", {**META, "noise": True, "seed": 5, "torch": "2.13.0"}))
    assert case.uniforms == root / "noisy" / "noise_uniforms.safetensors"
    assert (case.seed, case.meta.model_extra) == (5, {"torch": "2.13.0"})


def test_inputs_inside_the_case_come_before_those_beside_it(root):
    folder = write_meta(root / "inside", META)
    make_fixture(folder)
    case = read_case(folder)
    assert case.fixture == folder / "fixture"
    assert case.initial == folder / "initial.safetensors"
    assert case.tmpdir == folder / "fixture" / "data_eagle3"


def flag(name, value):
    return {"argv": [*META["argv"], f"--{name}", value]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        *(({name: ...}, rf"{name}: found .*[Ff]ield required") for name in REQUIRED),
        ({"which": "medusa"}, r"which: found 'medusa', expected .*eagle3"),
        ({"dtype": "fp8"}, r"dtype: found 'fp8', expected .*fp32"),
        *(({"case": name}, "case: found .* named like a folder") for name in ("", "..", "a/b", "/a", "a\n", "a" * 201)),
        ({"noise": "perhaps"}, "noise: found 'perhaps'"),
        ({"argv": "--lr 1"}, "argv: found '--lr 1', expected .*list"),
        ({"sample_index_order": [0, "x"]}, r"sample_index_order\.1: found 'x'"),
        ({"aliases": ["a"]}, r"aliases: found \['a'\]"),
        ({"argv": ["lr", "1"]}, "argv: found lr, expected a flag"),
        ({"argv": []}, "argv --configpath: found nothing"),
        ({"argv": META["argv"][:2]}, "argv --tmpdir: found nothing"),
        ({"argv": ["--configpath", "FIXTURE/no.json", *META["argv"][2:]]}, "argv --configpath: .*does not exist"),
        ({"argv": ["--configpath", "x" * 5000, *META["argv"][2:]]}, "argv --configpath: .*does not exist"),
        (flag("tmpdir", ""), "argv --tmpdir: .*does not exist"),
        ({"initial": "none.safetensors"}, "none.safetensors: found missing, expected .* beside it"),
        ({"samples_files": ["data_0.ckpt"]}, "samples_files: found 1 samples, expected at least one batch of 2"),
        ({"sample_index_order": [0, 1, 2]}, "sample_index_order: found 3 visits, expected 4 in 2 passes"),
        ({"sample_index_order": [0, 1, 2, 3]}, "sample_index_order: found 3, expected indices from 0 to 2"),
        ({"sample_index_order": [0, 1, 2, -1]}, "sample_index_order: found -1"),
        (flag("lr", "-1"), "argv --lr: found -1, expected .*greater than or equal to 0"),
        (flag("lr", "inf"), "argv --lr: found inf, expected .*finite"),
        (flag("bs", "0"), "argv --bs: found 0, expected .*greater than or equal to 1"),
        (flag("epoch", "-1"), "argv --epoch: found -1, expected .*greater than or equal to 0"),
        (flag("gradient-accumulation-steps", "0"), "argv --gradient-accumulation-steps: found 0, expected .*to 1"),
        (flag("forward_num_total", ""), "argv --forward_num_total: found , expected .*valid integer"),
        (flag("topk", "9" * 5000), f"argv --topk: found {'9' * 80}, expected .*integer"),
    ],
)
def test_a_field_that_does_not_fit_is_named(changes, message, root):
    meta = {name: value for name, value in {**META, **changes}.items() if value is not ...}
    with pytest.raises(InputError, match=rf"meta\.json: {message}"):
        read_case(write_meta(root / "bad", meta))


def test_what_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"meta\.json: file: found No such file .*, expected a recording's meta\.json"):
        read_case(tmp_path)
    (tmp_path / "initial.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="fixture: found missing, expected fixture in the case's folder or beside it"):
        read_case(write_meta(tmp_path / "one", META))


def test_cases_are_found_in_name_order_and_by_algorithm(tmp_path):
    make_fixture(tmp_path)
    for name, which in (("b", "eagle3"), ("a", "hass"), ("c", "eagle3")):
        write_meta(tmp_path / name, {**META, "case": name, "which": which})
    assert [case.name for case in find_cases(tmp_path)] == ["a", "b", "c"]
    assert [case.name for case in find_cases(tmp_path, "eagle3")] == ["b", "c"]
    assert [case.name for case in find_cases(tmp_path / "a")] == ["a"]


def test_a_folder_without_cases_is_refused(tmp_path):
    with pytest.raises(InputError, match="recordings: found no case"):
        find_cases(tmp_path)
    with pytest.raises(InputError, match="recordings: found no such folder"):
        find_cases(tmp_path / "nowhere")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
WORDS = st.sampled_from([*META["argv"], "--bs", "--lr", "--epoch", "0", "-3", "x", "", "--", "--=", "FIXTURE", "/"])


@given(
    meta=st.dictionaries(st.sampled_from([*META, "seed"]) | st.text(max_size=5), VALUES, max_size=14)
    | st.builds(lambda name, value: {**META, name: value}, st.sampled_from([*META, "seed", "aliases"]), VALUES)
    | st.builds(lambda words: {**META, "argv": words}, st.lists(WORDS | st.text(max_size=6), max_size=10))
    | st.builds(lambda words: with_flags(*words), st.lists(WORDS | st.text(max_size=6), max_size=10))
)
@settings(max_examples=200, deadline=None)
def test_any_object_is_a_case_or_refused(root, meta):
    folder = write_meta(root / "any", meta)
    try:
        fits = read_case(folder).name == meta["case"]
    except InputError as error:
        fits = error.file == str(folder / "meta.json")
    assert fits
