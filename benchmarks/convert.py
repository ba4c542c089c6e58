"""How fast checkpoints are converted, and with how much memory, beside `cp` on the same disk.

    python benchmarks/convert.py [--folder DIR] [--rounds 3] [--parts bf16,fp8,memory]

`bf16` and `fp8` measure speed on a model of DeepSeek-V3's widths (a MoE and an MTP layer, 8
experts, a sixteenth of the vocabulary; 3 GB in BF16): every round takes `cp -r` (copying bytes,
whatever the file system could share), import and export with 1 and 2 workers one after the other,
each with the source out of the page cache and the target synced to the disk. FP8 is dequantised on
import and rebuilt from its scales on export, and held in every round against a plain loop over
128×128 tiles, as published conversion scripts do it. Printed are medians, and medians of each
round's rate over that round's `cp`. Rates are bytes of the Hugging Face folder per second, read or
written. Rates are of the seconds without the interpreter's start, which is the same for every size;
the seconds with it are beside them.

`memory` converts full-width checkpoints (see synthetic_checkpoint.py) both ways with 1 and 2
workers: FP8 of two sizes, BF16 of the larger one; peak memory is the process's own (RssAnon; mapped
files are the kernel's cache).

Prints a table, why two other converters are not in it, then one JSON line. Needs about 55 GB of
disk for `memory`, 10 GB for the others.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from synthetic_checkpoint import make, model_of_size

from dsv3_plugin.recipe.load import load_model

SHARD = 5 * 10**9

CAPTION = (
    "s: medians, from the first read to the last sync, without the start of the interpreter; "
    "in all: with it."
)
NOT_BESIDE = (
    "mbridge and Megatron-Bridge are not beside it, as neither converts on a CPU: mbridge 0.15 "
    'builds DeepSeek-V3 with Transformer Engine alone and dequantises on device="cuda", '
    "Megatron-Bridge 0.6 needs CUDA packages and another transformers."
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, help="where to work; a temporary folder by default")
    parser.add_argument("--parts", default="bf16,fp8,memory", help="which to run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--gigabytes", default="10.1,13.2", help="the two sizes of `memory`")
    arguments = parser.parse_args()
    rows: dict[str, dict] = {}
    work = Path(tempfile.mkdtemp(prefix="convert-", dir=arguments.folder))
    try:
        for part in arguments.parts.split(","):
            if part == "memory":
                sizes = sorted(float(size) * 1e9 for size in arguments.gigabytes.split(","))
                for size, form in [*((size, "fp8") for size in sizes), (sizes[-1], "bf16")]:
                    rows |= memory(work, size, form)
            else:
                rows |= speed(work, part, arguments.rounds)
    finally:
        shutil.rmtree(work)
    report(rows)


def speed(work: Path, form: str, rounds: int) -> dict[str, dict]:
    """Rows of rates: seconds and bytes of every round, by what was measured."""
    source, checkpoint, out = work / "source", work / "checkpoint", work / "out"
    v3 = load_model("deepseek-v3")
    model = v3.model_copy(update={
        "name": "narrow", "num_layers": 1, "moe_layer_freq": [1], "num_moe_experts": 8,
        "moe_router_num_groups": None, "moe_router_group_topk": None,
        "vocab_size": v3.vocab_size // 16,
    })  # fmt: skip
    make(source, model, form, SHARD)
    size = forget(source)
    seconds: dict[str, list[float]] = {}
    in_all: dict[str, list[float]] = {}
    peaks: dict[str, int] = {}

    def note(name: str, taken: float, wall: float | None = None, peak: int = 0) -> None:
        seconds.setdefault(name, []).append(taken)
        in_all.setdefault(name, []).append(taken if wall is None else wall)
        peaks[name] = max(peaks.get(name, 0), peak)

    for _ in range(rounds):
        note("cp", copy(source, out))
        for workers in ("1", "2"):
            remove(checkpoint, out)
            note(f"import, {workers} workers", *convert("import", source, checkpoint, workers))
            back = ["--fp8"] if form == "fp8" else []
            note(f"export, {workers} workers", *convert("export", checkpoint, out, workers, *back))
        if dsv3("verify", source, out).returncode:
            raise SystemExit("the export differs from the source")
        remove(checkpoint, out)
        if form == "fp8":
            note("import, tile by tile", tile_by_tile(source, out))
    remove(source)
    return {
        f"{form} {size / 1e9:.1f} GB: {name}": {
            "bytes": size, "seconds": taken, "in_all": in_all[name], "peak": peaks[name],
            "of_cp": [cp / mine for cp, mine in zip(seconds["cp"], taken, strict=True)],
        }
        for name, taken in seconds.items()
    }  # fmt: skip


def memory(work: Path, size: float, form: str) -> dict[str, dict]:
    """Rows of peaks at full width."""
    source, checkpoint, out = work / "source", work / "checkpoint", work / "out"
    total = make(source, model_of_size(size, form), form, SHARD)
    back = ["--fp8"] if form == "fp8" else []
    rows = {}
    for workers in ("1", "2"):
        for verb, reads, writes, flags in (
            ("import", source, checkpoint, []), ("export", checkpoint, out, back),
        ):  # fmt: skip
            taken, wall, peak = convert(verb, reads, writes, workers, *flags)
            rows[f"full width {form} {total / 1e9:.1f} GB: {verb}, {workers} workers"] = {
                "bytes": total, "seconds": [taken], "in_all": [wall], "peak": peak,
            }  # fmt: skip
        remove(checkpoint, out)
    remove(source)
    return rows


def convert(
    verb: str, source: Path, target: Path, workers: str, *flags: str
) -> tuple[float, float, int]:
    """Runs a verb of `dsv3` in a process of its own.

    Returns the seconds it took, those with the interpreter's start, and its peak memory.
    """
    forget(source)
    began = time.monotonic()
    command = [sys.executable, "-m", "dsv3_plugin.cli", verb, source, target, "--workers", workers]
    process = subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, text=True)
    peak = 0
    while process.poll() is None:
        peak = max(peak, anonymous(process.pid))
        time.sleep(0.02)
    if process.returncode:
        raise SystemExit(f"dsv3 {verb} failed")
    wall = time.monotonic() - began
    # Its last line says how long it took, without the interpreter's start.
    return float(process.stdout.read().split(" written, ")[1].split(" s ")[0]), wall, peak


def copy(source: Path, target: Path) -> float:
    """Seconds of `cp -r` and a sync of what it wrote; blocks shared with the source are no copy."""
    forget(source)
    began = time.monotonic()
    subprocess.run(["cp", "-r", "--reflink=never", source, target], check=True)
    subprocess.run(["sync", "-f", target], check=True)
    seconds = time.monotonic() - began
    remove(target)
    return seconds


def tile_by_tile(source: Path, target: Path) -> float:
    """Seconds to read the folder, dequantise each 128×128 tile and write it in BF16."""
    target.mkdir()
    forget(source)
    began = time.monotonic()
    tensors: dict[str, torch.Tensor] = {}
    for shard in source.glob("*.safetensors"):
        tensors |= load_file(shard)
    for name in [name for name, tensor in tensors.items() if tensor.itemsize == 1]:
        weight, scale = tensors[name], tensors[name + "_scale_inv"]
        result = torch.empty(weight.shape, dtype=torch.bfloat16)
        for i in range(scale.shape[0]):
            for j in range(scale.shape[1]):
                tile = slice(128 * i, 128 * (i + 1)), slice(128 * j, 128 * (j + 1))
                result[tile] = (weight[tile].float() * scale[i, j]).bfloat16()
        tensors[name] = result
    save_file(tensors, target / "model.safetensors")
    subprocess.run(["sync", "-f", target], check=True)
    seconds = time.monotonic() - began
    remove(target)
    return seconds


def forget(path: Path) -> int:
    """Takes a folder's pages out of the page cache; its size in bytes."""
    subprocess.run(["sync", "-f", path], check=True)
    files = [file for file in path.rglob("*") if file.is_file()]
    for file in files:
        with file.open("rb") as handle:
            os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    return sum(file.stat().st_size for file in files)


def anonymous(process: int) -> int:
    """Bytes of a process's memory that are no mapped file's."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    kilobytes = [line.split()[1] for line in lines if line.startswith("RssAnon")]
    return int(kilobytes[0]) * 1024 if kilobytes else 0


def dsv3(*words: object) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "dsv3_plugin.cli", *map(str, words)]
    return subprocess.run(command, check=False, stdout=subprocess.DEVNULL)


def remove(*folders: Path) -> None:
    for folder in folders:
        shutil.rmtree(folder, ignore_errors=True)


def report(rows: dict[str, dict]) -> None:
    """The table and the JSON line."""
    print(CAPTION)
    print(f"{'':46}{'s':>8}{'in all':>8}{'GB/s':>8}{'of cp':>8}{'peak GB':>9}")
    for name, row in rows.items():
        seconds, wall = (statistics.median(row[key]) for key in ("seconds", "in_all"))
        line = f"{name:46}{seconds:8.1f}{wall:8.1f}{row['bytes'] / seconds / 1e9:8.2f}"
        line += f"{statistics.median(row['of_cp']):8.0%}" if row.get("of_cp") else f"{'':8}"
        print(line + (f"{row['peak'] / 1e9:9.2f}" if row["peak"] else ""))
    print(NOT_BESIDE)
    print(json.dumps({"benchmark": "convert", "rows": rows, "not_beside": NOT_BESIDE}))


if __name__ == "__main__":
    main()
