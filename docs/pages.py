"""How the pages become a site: their order, the API reference, and links to files outside of ``docs/``.

Nothing is listed twice: a page that no section below names stands under "More", a module appears with its package.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("ports", "parity", "parity/fixtures")
SECTIONS = {
    "Use": (
        "draft.md",
        "scale.md",
        "words.md",
        "training.md",
        "data.md",
        "resume.md",
        "check.md",
        "serving.md",
        "results.md",
        "architectures.md",
        "performance.md",
    ),
    "Parity": (
        "parity.md",
        "report.md",
        "deviations.md",
        "originals.md",
        "porting.md",
        "existing.md",
        "kit.md",
        "ci.md",
    ),
}
SOURCES = "source"
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((\.\./[^)#\s]+)(?:#[^)\s]*)?\)")
FENCE = re.compile(r'^```(\w+) title="([^"]+)"$', re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr|exc):<code>~?([^<]+)</code>")


def on_files(files: Files, config: Any) -> Files:
    """Add a page for every package and the source files that pages link to; put all of them in order."""
    for page in [file for file in files if file.src_uri.endswith(".md")]:
        for path in linked(page):
            uri = f"{SOURCES}/{path}"
            if files.get_file_from_path(uri) is None:
                files.append(File.generated(config, uri, content=(ROOT / path).read_bytes()))
    for package, modules in packages().items():
        files.append(File.generated(config, f"api/{package}.md", content=reference(package, modules)))
    config.nav = navigation([file.src_uri for file in files.documentation_pages()])
    return files


def packages() -> dict[str, list[str]]:
    """Packages with their public modules, both by dotted name."""
    found: dict[str, list[str]] = {}
    for file in sorted(path for top in PACKAGES for path in (ROOT / top).rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        if any(part.startswith("_") for part in parts if part != "__init__"):
            continue
        package, name = ".".join(parts[:-1]), ".".join(part for part in parts if part != "__init__")
        found.setdefault(package, []).append(name)
    return {package: sorted(names) for package, names in found.items()}


def reference(package: str, modules: list[str]) -> str:
    """The page of a package: what its modules define."""
    return f"# {package}\n\n" + "\n".join(f"::: {module}\n" for module in modules)


def navigation(pages: list[str]) -> list[Any]:
    """The front page, the sections, what no section names, and the reference."""
    api = sorted(page for page in pages if page.startswith("api/"))
    named = {page for section in SECTIONS.values() for page in section}
    rest = sorted(set(pages) - named - set(api) - {"index.md"})
    listed = {title: [page for page in section if page in pages] for title, section in SECTIONS.items()}
    return [
        "index.md",
        *({title: entries} for title, entries in [*listed.items(), ("More", rest), ("API", api)] if entries),
    ]


def linked(page: File) -> list[str]:
    """Files of the project outside of ``docs/`` that a page links to; what does not exist ends the build."""
    links = [match[2] for match in LINK.finditer(page.content_string) if is_outside(page, match[2])]
    return [path for link in links if (ROOT / (path := outside(page, link))).is_file()]


def is_outside(page: File, link: str) -> bool:
    """Does a relative link leave ``docs/``?"""
    return posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link)).split("/")[0] != "docs"


def outside(page: File, link: str) -> str:
    """The path, from the project's root, of what a link leads to."""
    path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page.src_uri), link))
    if not (ROOT / path).exists():
        raise PluginError(f"{page.src_uri}: link to {link}: found no file {path}, expected one of the project")
    return path


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files of the project go to their copies in the site; a folder is named and not linked."""

    def replaced(match: re.Match[str]) -> str:
        text, link = match.groups()
        if not is_outside(page.file, link):
            return match[0]
        path = outside(page.file, link)
        if (ROOT / path).is_dir():
            return text if path in text else f"{text} (`{path}/`)"
        return f"[{text}]({posixpath.relpath(f'{SOURCES}/{path}', posixpath.dirname(page.file.src_uri) or '.')})"

    return FENCE.sub(plain_fence, LINK.sub(replaced, markdown))


def plain_fence(match: re.Match[str]) -> str:
    """A block of code whose title stands above it."""
    language, title = match.groups()
    return f"\n`{title}`\n\n```{language}"


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings' roles are names in code, and a double colon before an example is a colon."""
    return ROLE.sub(lambda match: f"<code>{match[1].rpartition('.')[2]}</code>", html).replace("::</p>", ":</p>")
