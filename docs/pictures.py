"""Take the pictures of ``docs/report.md`` anew: ``python -m docs.pictures`` from the project's root, with Chromium.

One report of two cases that pass, and one of a port with a planted fault.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from parity.pair import Options, find_pair
from parity.plants import Ground
from parity.prototypes.faults import in_config, unnormed_residual
from parity.report import write_html
from parity.run import join_reports, run_pair

DOCS = Path(__file__).parent
PLAIN = "not (noise or ga2 or bs1)"
PICTURES = {"report.png": 1790, "report_failed.png": 1500}
"""Names and heights in pixels."""


def main() -> int:
    """Run, draw, photograph."""
    with tempfile.TemporaryDirectory() as folder:
        pages = {name: Path(folder) / f"{name}.html" for name in PICTURES}
        draw(pages["report.png"], ("eagle3", "hass"))
        with in_config(unnormed_residual)(Ground(), 1.0):
            draw(pages["report_failed.png"], ("eagle3",))
        for name, height in PICTURES.items():
            photograph(pages[name], DOCS / name, height)
    return 0


def draw(page: Path, algorithms: tuple[str, ...]) -> None:
    """The report of the three-step float32 cases."""
    options = Options(keyword=f"fp32_k3 and {PLAIN}")
    write_html(join_reports([run_pair(find_pair(name), options, print) for name in algorithms]), page)


def photograph(page: Path, picture: Path, height: int) -> None:
    """What a browser of 1000 pixels' width shows first."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        raise SystemExit("no Chromium: apt install chromium")
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", f"--window-size=1000,{height}"]
    subprocess.run([browser, *words, f"--screenshot={picture}", page.as_uri()], check=True, capture_output=True)


if __name__ == "__main__":
    sys.exit(main())
