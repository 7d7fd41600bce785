"""Write all generated pages."""

from pathlib import Path

from compressor.files import write_text
from docs.generate import (
    licences_page,
    options_page,
    paper_page,
    results_page,
    write_paper_pictures,
    write_pictures,
)

DOCS = Path(__file__).parent.parent

if __name__ == "__main__":
    write_text(DOCS / "options.md", options_page())
    write_text(DOCS / "licences.md", licences_page())
    write_text(DOCS / "results.md", results_page())
    write_pictures(DOCS / "pictures")
    write_text(DOCS / "paper.md", paper_page())
    write_paper_pictures(DOCS / "pictures")
