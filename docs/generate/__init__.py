"""Write the generated pages: options.md from the commands, results.md from benchmarks/results, licences.md from pip's,
and paper.md from the studies of the paper's tables.

    python -m docs.generate

Tests hold both pages to what this gives. A new study is one function in a `*_sections` file, a line in
`results.STUDIES`, and, where it has a headline figure, a function in `summary`.
"""

from docs.generate.licences import licences_page
from docs.generate.options import options_page
from docs.generate.paper import paper_page, write_paper_pictures
from docs.generate.results import results_page, write_pictures

__all__ = ["licences_page", "options_page", "paper_page", "results_page", "write_paper_pictures", "write_pictures"]
