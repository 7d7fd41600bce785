"""A real browser without a window, and a page in a frame as wide as a phone."""

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
QUIET = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
QUIET += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
QUIET += ["--hide-scrollbars"]
PHONE_WIDTH = 360
# A frame, since a headless window may refuse to be that narrow.
FRAME = """<!doctype html><iframe id="phone" width="{width}" style="border:0" srcdoc="{page}"></iframe>
<script>
window.onload = () => {{
  const inner = document.getElementById("phone").contentWindow;
  document.body.dataset.scroll = inner.document.documentElement.scrollWidth;
  document.body.dataset.inner = inner.innerWidth;
  document.body.dataset.pictures = inner.document.querySelectorAll("svg text").length;
  document.body.dataset.tables = inner.document.querySelectorAll("table").length;
}};
</script>"""


def run_browser(folder: Path, page: Path, *options: str) -> str:
    """What the browser prints when it has opened `page`; its profile goes into `folder`. Skips without a browser."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        pytest.skip("no Chromium here to open the page with")
    command = [found, *QUIET, f"--user-data-dir={folder / 'profile'}", *options, page.as_uri()]
    return subprocess.run(command, capture_output=True, check=True, timeout=60).stdout.decode()


def on_a_phone(page: str, folder: Path) -> dict[str, int]:
    """How wide the page is and may be there, and how many pictures' labels and tables it has."""
    path = folder / "frame.html"
    path.write_text(FRAME.format(width=PHONE_WIDTH, page=html.escape(page)), encoding="utf-8")
    dom = run_browser(folder, path, "--dump-dom")
    return {key: int(value) for key, value in re.findall(r'data-(scroll|inner|pictures|tables)="(\d+)"', dom)}
