"""Runs benchmark modules, each in a process of its own: ``python -m benchmarks.run [NAME ...]`` (default: all)."""

from __future__ import annotations

import pathlib
import subprocess
import sys

FOLDER = pathlib.Path(__file__).parent


def main(names: list[str]) -> int:
    """Runs the named benchmarks; returns how many failed."""
    known = sorted(
        p.stem
        for p in FOLDER.glob("*.py")
        if p.stem not in ("__init__", "accelerator", "harness", "run")
    )
    unknown = [name for name in names if name not in known]
    if unknown:
        print(
            f"error: unknown benchmarks {unknown}; there are: {', '.join(known)}", file=sys.stderr
        )
        return 2
    failed = 0
    for name in names or known:
        print(f"# {name}", flush=True)
        done = subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], cwd=FOLDER.parent)
        failed += done.returncode != 0
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
