"""Print a run log as a table of organ volumes and times: python tests/run_log_table.py outputs/run_log.jsonl."""

from __future__ import annotations

import json
import pathlib
import sys


def main() -> None:
    records = [json.loads(line) for line in pathlib.Path(sys.argv[1]).read_text().splitlines()]
    rows = [["case", "status", "model", "device", "liver ml", "kidneys ml", "spleen ml", "pancreas ml", "seconds"]]
    for record in records:
        volumes = [f"{ml:.0f}" for ml in record.get("volumes_ml", {}).values()] or ["-"] * 4
        about = [str(record.get(key, "-")) for key in ("case", "status", "model", "device")]
        rows.append([*about, *volumes, str(record.get("seconds", {}).get("total", "-"))])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
