"""The documentation builds strictly and offline, holds every page, and its first example does what it says."""

import io
import logging
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from unittest import mock

import pytest
from mkdocs.commands.build import build as build_site
from mkdocs.config import load_config
from mkdocs.exceptions import Abort, MkDocsException

ROOT = Path(__file__).parents[1]
PAGES = sorted(path.relative_to(ROOT / "docs") for path in (ROOT / "docs").rglob("*.md"))
EXTERNAL = re.compile(
    r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"(?:https?:)?//|url\([\"']?(?:https?:)?//|@import"
)
NUMBER = re.compile(r"\d+\.\d+")
LOSS = re.compile(r"Loss: (\d+\.\d+)")
NOWHERE = {"HTTP_PROXY": "http://127.0.0.1:9", "HTTPS_PROXY": "http://127.0.0.1:9"}


def build(root, site, **changes):
    """As ``mkdocs build --strict``, in this process and without a network; what it complains of, "" of nothing."""
    said = io.StringIO()
    handler, logger = logging.StreamHandler(said), logging.getLogger("mkdocs")
    logger.addHandler(handler)
    try:
        with mock.patch.dict(os.environ, NOWHERE):
            config = load_config(str(root / "mkdocs.yml"), site_dir=str(site), strict=True, **changes)
            config.plugins.on_startup(command="build", dirty=False)
            build_site(config)
        return ""
    except (Abort, MkDocsException) as error:
        return f"{said.getvalue()}{error}"
    finally:
        logger.removeHandler(handler)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """All pages; those of the reference, which take half a minute, are titles alone."""
    folder = tmp_path_factory.mktemp("site")
    assert not (said := build(ROOT, folder, plugins=["search"])), said
    return folder


def test_every_page_is_in_the_navigation(site):
    front = (site / "index.html").read_text()
    assert len(PAGES) > 8
    for page in PAGES:
        assert f'href="{page.with_suffix(".html").as_posix()}"' in front, page


@pytest.mark.nightly
def test_the_reference_holds_every_public_module(tmp_path):
    site = tmp_path / "site"
    assert not (said := build(ROOT, site)), said
    for module in (
        "ports.training.loop",
        "parity.compare",
        "parity.prototypes.reference.attention",
        "ports.hass.model",
    ):
        page = (site / "api" / f"{module.rpartition('.')[0]}.html").read_text()
        assert f'id="{module}"' in page, module
    text = (site / "api" / "ports.hass.html").read_text()
    assert 'id="ports.hass.model.HassDraftModel.forward"' in text
    assert ":class:" not in text


def test_the_site_needs_no_network(site):
    files = [path for path in site.rglob("*") if path.suffix in (".html", ".css")]
    assert len(files) > 20
    assert [path.name for path in files if EXTERNAL.search(path.read_text())] == []


def test_pages_link_to_sources_in_the_site(site):
    assert 'href="source/ports/training/flash.py"' in (site / "training.html").read_text()
    copied = site / "source" / "ports" / "training" / "flash.py"
    assert copied.read_bytes() == (ROOT / "ports" / "training" / "flash.py").read_bytes()


@pytest.fixture
def one_page(tmp_path):
    """Builds a project of one page."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "folder").mkdir()
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    shutil.copy(ROOT / "docs" / "pages.py", tmp_path / "docs")
    (tmp_path / "code.py").write_text("x = 1\n")

    def write_and_build(text):
        (tmp_path / "docs" / "index.md").write_text(text)
        return build(tmp_path, tmp_path / "site")

    return write_and_build


def test_links_to_files_hold_and_blocks_of_code_with_titles_are_blocks_of_code(one_page, tmp_path):
    text = "# One\n\n[code](../code.py), [`folder/`](../folder/), [this](../folder) and [here](#one)\n\n"
    text += '```python title="one.py"\ngroups[0]["lr"]\n```\n\n```sh title="exit code 1"\nfalse\n```\n'
    assert one_page(text) == ""
    page = (tmp_path / "site" / "index.html").read_text()
    assert '<a href="source/code.py">code</a>, <code>folder/</code>, this (<code>folder/</code>)' in page
    assert '<code>one.py</code></p>\n<pre><code class="language-python">groups[0]' in page
    assert '<code>exit code 1</code></p>\n<pre><code class="language-sh">false' in page


@pytest.mark.parametrize(
    ("text", "complaints"),
    [
        ("[gone](gone.md)\n\n[gone](#nowhere)\n\n![gone](gone.png)\n", ("'gone.md'", "'#nowhere'", "'gone.png'")),
        ("[gone](../gone.py)\n", ("link to ../gone.py: found no file gone.py, expected one of the project",)),
        ("::: no.such.module\n", ("no.such.module",)),
    ],
)
def test_a_broken_link_ends_the_build(text, complaints, one_page):
    said = one_page(f"# One\n\n{text}")
    assert [words for words in complaints if words not in said] == [], said


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "docs" / page).read_text(), re.DOTALL)


def test_the_first_run_prints_what_the_guide_shows(programs, tmp_path):
    script, shown = blocks("training.md", "sh")[0], blocks("training.md", "text")[0]
    assert "runs/first" in script
    script = script.replace("runs/first", shlex.quote(str(tmp_path / "first")))
    script = script.replace("speculator ", f"{shlex.quote(str(programs / 'python'))} -m ports ")
    done = subprocess.run(["bash", "-ec", script], cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    said = [line for line in done.stdout.splitlines() if line and not line.startswith("[")]  # DeepSpeed's, if installed
    assert [NUMBER.sub("N", line) for line in said] == [NUMBER.sub("N", line) for line in shown.splitlines()]
    found, expected = (list(map(float, LOSS.findall(text))) for text in ("\n".join(said), shown))
    assert len(found) == 2
    assert found == pytest.approx(expected, rel=1e-3)  # 0 on the guide's machine; another one rounds otherwise
    files = {path.name for path in (tmp_path / "first").iterdir()}
    assert files >= {"model0", "model1", "settings.json", "metrics.jsonl"}


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        ("--configpath {f}/draft_eagle3.json", "draft_vocab_size: found an unknown key"),
        ("--configpath {f}/draft_hass.json --bs 200", "records: found 17, expected at least batch_size = 200"),
    ],
)
def test_failures_of_the_guide(words, complaint, tmp_path, capsys):
    from ports.hass.train import main

    fixture = ROOT / "fixtures" / "recordings" / "fixture"
    given = [*words.format(f=fixture).split(), "--tmpdir", str(fixture / "data_hass"), "--num_workers", "0"]
    assert main([*given, "--basepath", str(fixture / "verifier"), "--cpdir", str(tmp_path)]) == 2
    assert complaint in capsys.readouterr().err
    assert complaint in (ROOT / "docs" / "training.md").read_text()


@pytest.mark.parametrize("page", [*(file.name for file in ROOT.glob("*.md")), "examples/llama_3_1_8b/README.md"])
def test_links_of_pages_outside_of_the_site_hold(page):
    links = re.findall(r"(?:\]\(|src=\")(?!https?:)([^)#\"\s]+)", (ROOT / page).read_text())
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_one_version_is_told():
    told = {
        "pyproject.toml": r'^version = "(.+)"$',
        "CITATION.cff": r"^version: (.+)$",
        "CHANGELOG.md": r"^## (\d.+?) - ",
    }
    found = [re.findall(said, (ROOT / name).read_text(), re.MULTILINE)[0] for name, said in told.items()]
    assert len(set(found)) == 1, found
    assert f"git tag -s v{found[0]}" in (ROOT / "CONTRIBUTING.md").read_text()


def test_workflows_fit_their_schema(tmp_path):
    """Those of this project and the one for another's; actionlint, which sees more, runs in the workflow itself."""
    pytest.importorskip("check_jsonschema", reason="check-jsonschema is not installed: pip install -e '.[dev]'")
    from check_jsonschema import main

    (page,) = blocks("ci.md", r'yaml title="[^"]+"')
    assert page.count("\n") <= 20
    (tmp_path / "page.yml").write_text(page)
    (tmp_path / "broken.yml").write_text(page.replace("runs-on:", "runs_on:"))
    files = [*(ROOT / ".github" / "workflows").glob("*.yml"), tmp_path / "page.yml"]
    for given, code in ((files, 0), ([tmp_path / "broken.yml"], 1)):
        with pytest.raises(SystemExit) as end:
            main(["--quiet", "--builtin-schema", "vendor.github-workflows", *map(str, given)])
        assert end.value.code == code
