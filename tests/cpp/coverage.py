"""Line coverage of the stationary kernels' source, over all emulated instances together, from gcov's data.

python coverage.py reset OBJECTS          forgets what earlier runs counted
python coverage.py report OBJECTS GCOV    prints each file's share and the lines never run; fails below the limit
"""

import json
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

LIMIT = 95.0  # percent, of all files together


def kernel_source(path: str) -> str | None:
    parts = Path(path).parts
    name = "/".join(parts[-2:])
    return name if name.startswith("stationary/") and name.endswith(".cuh") else None


def line_counts(objects: Path, gcov: str) -> dict[str, dict[int, int]]:
    """File -> line -> how often it ran, in whatever instance."""
    counts: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for data in sorted(objects.rglob("*.gcda")):
        with tempfile.TemporaryDirectory() as folder:
            command = [gcov, "--json-format", "--stdout", str(data.resolve())]
            output = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout
        for record in output.splitlines():
            for file in json.loads(record)["files"]:
                if name := kernel_source(file["file"]):
                    for line in file["lines"]:
                        counts[name][line["line_number"]] += line["count"]
    return counts


def report(objects: Path, gcov: str) -> int:
    counts = line_counts(objects, gcov)
    if not counts:
        print(f"no coverage data of stationary/*.cuh under {objects}")
        return 1
    total = ran = 0
    for name, lines in sorted(counts.items()):
        never = [line for line, count in sorted(lines.items()) if count == 0]
        total, ran = total + len(lines), ran + len(lines) - len(never)
        missing = f"  never run: {', '.join(map(str, never))}" if never else ""
        print(f"{name:36} {100 * (1 - len(never) / len(lines)):6.1f} % of {len(lines):4} lines{missing}")
    share = 100 * ran / total
    print(f"{'stationary kernels':36} {share:6.1f} % of {total:4} lines, at least {LIMIT} % expected")
    return 0 if share >= LIMIT else 1


def main(action: str, objects: str, gcov: str = "gcov") -> int:
    if action == "reset":
        for data in Path(objects).rglob("*.gcda"):
            data.unlink()
        return 0
    return report(Path(objects), gcov)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
