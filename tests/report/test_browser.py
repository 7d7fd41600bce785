"""The page in a real browser."""

import re
from pathlib import Path

import pytest

from tests.browser import PHONE_WIDTH, on_a_phone, run_browser
from tests.report.examples import TextOf


@pytest.mark.parametrize("name", ["report", "sparse"])
def test_page_fits_a_phone(name: str, page: str, sparse_page: str, tmp_path: Path) -> None:
    found = on_a_phone({"report": page, "sparse": sparse_page}[name], tmp_path)
    assert found["scroll"] <= found["inner"] == PHONE_WIDTH
    assert found["pictures"] > 0


def test_browser_shows_the_page(page: str, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text(page, encoding="utf-8")
    text = TextOf(run_browser(tmp_path, path, "--dump-dom")).text
    assert "resnet18: 46.8 MB → 9.1 MB (5.1× smaller)" in text
    assert "rank" in text.lower()


@pytest.mark.parametrize("width", [360, 1200])
def test_screenshots_can_be_taken(width: int, page: str, tmp_path: Path) -> None:
    (tmp_path / "report.html").write_text(page, encoding="utf-8")
    shot = tmp_path / "shot.png"
    size = f"--window-size={width},1600"
    run_browser(tmp_path, tmp_path / "report.html", f"--screenshot={shot}", size)
    assert shot.stat().st_size > 20_000  # an empty page of this size is far smaller


def test_page_asks_for_nothing_outside(page: str, sparse_page: str) -> None:
    for content in (page, sparse_page):
        assert not re.search(r'\b(src|href|action|data)\s*=\s*["\']?(?!["\'#])', content)
        assert not re.search(r"@import|url\((?!#)", content)
