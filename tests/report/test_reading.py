"""Reports in files: read as they were written, or refused in a sentence."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from compressor.errors import InputError
from compressor.report.page import read_report, write_report
from compressor.report.records import Report


def test_round_trip_and_determinism(report: Report, page: str, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(report.model_dump_json())
    again = read_report(tmp_path / "report.json")
    assert again == report
    write_report(again, tmp_path / "report.html")
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == page


def test_missing_file_is_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot read .*report\.json: No such file"):
        read_report(tmp_path / "report.json")


@pytest.mark.parametrize("content", [b"", b"not json", b"\xff\xfe", b'{"a": '])
def test_no_json_is_input_error(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"report\.json is not a report: it does not hold JSON"):
        read_report(path)


def spoil(record: dict[str, Any], place: str, value: Any) -> None:
    *parents, last = place.split(".")
    for parent in parents:
        record = record[parent]
    record[last] = value


@pytest.mark.parametrize(
    ("place", "value"), [("fidelity.images", "many"), ("seed", None), ("search.certificate.met", 3.5)]
)
def test_wrong_field_is_named(place: str, value: Any, report: Report, tmp_path: Path) -> None:
    record = json.loads(report.model_dump_json())
    spoil(record, place, value)
    (tmp_path / "report.json").write_text(json.dumps(record))
    with pytest.raises(InputError, match=re.escape(f"field {place}: ")) as caught:
        read_report(tmp_path / "report.json")
    assert "\n" not in str(caught.value)
