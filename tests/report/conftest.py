"""The example reports and their pages."""

import pytest

from compressor.report.page import render_report
from compressor.report.records import Report
from tests.report.examples import make_report, make_sparse_report


@pytest.fixture(scope="module")
def report() -> Report:
    return make_report()


@pytest.fixture(scope="module")
def page(report: Report) -> str:
    return render_report(report)


@pytest.fixture(scope="module")
def sparse_page() -> str:
    return render_report(make_sparse_report())
