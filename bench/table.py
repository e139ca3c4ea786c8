"""Print a benchmark record as the table that README holds: python bench/table.py RECORD.json."""

import json
import sys
from collections import defaultdict
from pathlib import Path


def table(record: dict) -> str:
    """Return the FBANK group in microseconds a clip, with how much faster ours is."""
    cells: dict[str, dict[str, str]] = defaultdict(dict)
    columns: list[str] = []
    for case in record["benchmarks"]:
        if case["group"] != "fbank":
            continue
        clips = case["params"]["waveforms"]
        column = f"{clips} clip{'s' * (clips > 1)}, {case['params']['threads']} thread"
        column += "s" * (case["params"]["threads"] > 1)
        name = case["params"].get("name", "**ours** (`numba`)")
        micros = case["stats"]["median"] / clips * 1e6
        ratio = case["extra_info"].get("ours_is_faster_by")
        cells[name][column] = f"{micros:,.0f}" + (f" ({ratio:.1f} ×)" if ratio else "")
        if column not in columns:
            columns.append(column)
    columns.sort(key=lambda column: (int(column.split()[0]), column))
    lines = [f"| µs a clip | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for name, row in cells.items():
        lines.append(f"| {name} | {' | '.join(row.get(column, '–') for column in columns)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(json.loads(Path(sys.argv[1]).read_text())))
