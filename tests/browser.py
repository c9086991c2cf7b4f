"""A headless browser for the tests of pages: the document after its script ran, and what the console said."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

# The names that distributions and vendors give to the one engine that can print a page from a command line.
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome", "chrome-headless-shell")
CHROMIUM = next((path for name in BROWSERS if (path := shutil.which(name))), None)
# What is wider than the window and does not scroll in a box of its own makes the whole page scroll.
_MEASURE = (
    "<script>document.body.dataset.beyond = document.documentElement.scrollWidth - window.innerWidth;"
    "document.body.dataset.broken = [...document.images].filter(image => !image.naturalWidth).length;"
    "</script></body>"
)


def browse(page: Path, fragment: str, *flags: str) -> tuple[str, str]:
    """The document after its script ran, and what the browser logged."""
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=3000", "--host-resolver-rules=MAP * ~NOTFOUND", *flags]
    ran = subprocess.run(
        [*command, f"{page.as_uri()}{fragment}"], capture_output=True, text=True, timeout=120, check=True
    )
    return ran.stdout, ran.stderr


def check_page(page: Path, width: int) -> str:
    """Load a page in a window of so many pixels; return its document.

    Nothing may be logged on the console, stand out beyond the window or be a picture that cannot be read.
    """
    measured = page.with_name(f"{page.stem}-{width}.html")
    text = page.read_text(encoding="utf-8")
    measured.write_text(text.replace("</body>", _MEASURE), encoding="utf-8")
    document, log = browse(measured, "", "--dump-dom", f"--window-size={width},900")
    assert "CONSOLE" not in log, log
    beyond, broken = (int(re.search(rf'data-{name}="(-?\d+)"', document)[1]) for name in ("beyond", "broken"))
    assert beyond <= 0, f"{beyond} pixels beyond a window of {width}"
    assert broken == 0, f"{broken} pictures cannot be read"
    return document
