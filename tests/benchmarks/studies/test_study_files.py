"""Files of the studies: rows say where they were measured, whatever machine adds others to them."""

import json
import time
from pathlib import Path

from benchmarks.studies.study import read_results, write_results
from docs.generate.formatting import machine


def test_rows_of_another_machine_say_so_in_the_file_and_on_the_page(tmp_path: Path) -> None:
    path = write_results("one", {}, [{"case": "a"}], time.perf_counter(), tmp_path)
    earlier = json.loads(path.read_text())
    assert machine(earlier).endswith(" s in all.")
    del earlier["rows"][0]["measured"]  # as in files of before
    earlier["machine"] |= {"processor": "Another", "versions": {"torch": "1.0"}}
    path.write_text(json.dumps(earlier))
    rows = [*read_results("one", tmp_path)["rows"], {"case": "b"}]
    write_results("one", {}, rows, time.perf_counter(), tmp_path)
    found = json.loads(path.read_text())
    assert [row["measured"]["processor"] == "Another" for row in found["rows"]] == [True, False]
    assert machine(found).endswith("Measured elsewhere, 1 of 2 rows on Another, torch 1.0.")
