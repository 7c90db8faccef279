"""Wrong code that a test must notice: makes the changes in changes/*.toml one at a time, and runs their tests.

    python tests/mutants/run.py [--only=TEXT] [--least=0.95] [--workers=2]

Each change replaces one place of one file in a copy of this checkout. It is noticed if a test fails. The command prints
a line for each change and the share that was noticed; the exit status is 1 if that is below `--least`. Each worker
has a copy of its own.
"""

import argparse
import queue
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
CHANGES = Path(__file__).with_name("changes")
SECONDS = 600  # a change may make a test wait for ever


def changes() -> list[dict]:
    """Those of changes/*.toml, a file for a few rooms.

    Each says: file; before, which occurs once in it; after; tests (paths, or one with `-k` words); why, what it breaks.
    """
    return [change for file in sorted(CHANGES.glob("*.toml")) for change in tomllib.loads(file.read_text())["change"]]


def check(change: dict, root: Path = ROOT) -> str | None:
    """What is wrong with a change, or None: its text must occur once in the file, and its tests must exist."""
    count = (root / change["file"]).read_text().count(change["before"]) if (root / change["file"]).exists() else -1
    if count != 1:
        return f"{change['file']}: {change['before']!r} occurs {count} times" if count >= 0 else f"no {change['file']}"
    if change["after"] == change["before"]:
        return f"{change['file']}: {change['after']!r} changes nothing"
    files = [
        word.partition("::")[0] for word in change["tests"] if word.startswith(("tests/", "deeplearn/", "kernels/"))
    ]
    missing = [file for file in files if not (root / file).exists()]
    return f"{change['file']}: no {missing[0]}" if missing else None if files else f"{change['file']}: names no test"


def copy(destination: Path) -> None:
    """The tracked files of this checkout."""
    names = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    for name in filter(None, names):
        (destination / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, destination / name)


def noticed(change: dict, root: Path) -> bool:
    """Whether a test fails, or never ends, with the change in the copy at `root`; the copy is as before afterwards."""
    file = root / change["file"]
    original = file.read_text()
    file.write_text(original.replace(change["before"], change["after"]))
    try:
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *change["tests"]]
        ended = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return True
    finally:
        file.write_text(original)
    if ended.returncode not in (0, 1):  # 1: a test failed; others: pytest was not run as meant
        if "error" in ended.stdout.lower() and ended.returncode == 2:  # a module cannot be imported
            return True
        raise SystemExit(f"{change['file']}: {' '.join(command)} ended with {ended.returncode}\n{ended.stdout[-2000:]}")
    return ended.returncode == 1


def tried(chosen: Sequence[dict], workers: int) -> Iterator[tuple[dict, bool, float]]:
    """(change, whether it was noticed, seconds) as they end: `workers` at a time, each in a copy of its own."""
    copies: queue.SimpleQueue[Path] = queue.SimpleQueue()

    def one(change: dict) -> tuple[dict, bool, float]:
        root, start = copies.get(), time.monotonic()
        try:
            return change, noticed(change, root), time.monotonic() - start
        finally:
            copies.put(root)

    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(workers) as pool:
        for number in range(workers):
            copy(Path(directory) / str(number))
            copies.put(Path(directory) / str(number))
        try:
            for future in as_completed([pool.submit(one, change) for change in chosen]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, what has not begun never does


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="changes whose file, text or reason has this in it")
    parser.add_argument("--least", type=float, default=0.95, help="the share of changes that has to be noticed")
    parser.add_argument("--workers", type=int, default=2, help="changes tried at the same time")
    flags = parser.parse_args(arguments)
    chosen = [change for change in changes() if flags.only in f"{change['file']} {change['before']} {change['why']}"]
    if wrong := [line for line in map(check, chosen) if line] or ([] if chosen else ["no change has that in it"]):
        raise SystemExit("\n".join(wrong))
    survivors = []
    for number, (change, seen, seconds) in enumerate(tried(chosen, flags.workers), 1):
        survivors += [] if seen else [change]
        word = "noticed " if seen else "SURVIVED"
        print(f"{number:4} {word} {seconds:4.0f} s  {change['file']}: {change['why']}", flush=True)
    share = 1 - len(survivors) / len(chosen)
    print(f"{len(chosen) - len(survivors)} of {len(chosen)} changes were noticed ({100 * share:.1f} %)")
    if share < flags.least:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
