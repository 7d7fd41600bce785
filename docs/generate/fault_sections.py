"""The section of results.md on hostile inputs and faults."""

from docs.generate.formatting import Row, Study, grouped, machine, section, table


def hard(study: Study) -> str:
    """How many inputs of each kind were tried, refused in a sentence, and taken for what they are."""
    rows = [*map(_sum, grouped(study["rows"], "kind"))]
    about = (
        "`make test-hard` makes them at random from good ones, by a seed. Refused: in one sentence, with nothing "
        "changed. Right: read as what they say, or ended as an undisturbed run does. There is no third outcome, or "
        f"the test fails. {machine(study)} The tests take {study['processor_seconds']:,.0f} s of processor time."
    )
    columns = {
        "what": lambda r: r["kind"],
        "tried": lambda r: f"{r['tried']:,}",
        "refused": lambda r: f"{r['refused']:,}",
        "right": lambda r: f"{r['right']:,}",
    }
    total = _sum([{**row, "kind": "all"} for row in rows])
    return section(f"{study['study']}: hostile inputs and faults", about, table(columns, [*rows, total]))


def _sum(rows: list[Row]) -> Row:
    return {"kind": rows[0]["kind"]} | {name: sum(row[name] for row in rows) for name in ("tried", "refused", "right")}
