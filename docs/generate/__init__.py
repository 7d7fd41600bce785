"""Write the generated pages: options.md from the commands themselves, results.md from benchmarks/results.

    python -m docs.generate

Tests hold both pages to what this gives. A new study is one function in a `*_sections` file, a line in
`results.STUDIES`, and, where it has a headline figure, a function in `summary`.
"""

from docs.generate.options import options_page
from docs.generate.results import results_page, write_pictures

__all__ = ["options_page", "results_page", "write_pictures"]
