"""How long a person waits for the verbs that need no torch: whole processes, by the clock.

    python benchmarks/cli_start.py [--repeats 9]

Every verb is started as many times, all in turn so that a busy moment hits all alike. Prints the
median and the fastest of each, beside an empty Python's, and one JSON line.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

VERBS = (
    "--help",
    "--version",
    "plan deepseek-v3",
    "plan pretrain/deepseek-v3 --json",
    "schedule dualpipe_v --pp 16 --micro-batches 60",
    "schedule dualpipe_v --pp 16 --micro-batches 60 --model deepseek-v3",
)


def seconds(command: list[str]) -> float:
    """Seconds until a process has ended well."""
    began = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    commands = {"an empty Python": [sys.executable, "-c", ""]}
    commands |= {f"dsv3 {v}": [sys.executable, "-m", "dsv3_plugin.cli", *v.split()] for v in VERBS}
    for command in commands.values():
        seconds(command)  # compiled, and in the page cache
    taken: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(arguments.repeats):
        for name, command in commands.items():
            taken[name].append(seconds(command))
    medians = {name: round(statistics.median(times), 3) for name, times in taken.items()}
    print(f"{'':70}{'median':>8}{'fastest':>9}")
    for name, times in taken.items():
        print(f"{name:70}{medians[name]:8.3f}{min(times):9.3f}")
    print(json.dumps({"repeats": arguments.repeats, "median_seconds": medians}))


if __name__ == "__main__":
    main()
