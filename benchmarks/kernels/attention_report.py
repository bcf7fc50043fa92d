"""What the CUDA kernels of tree attention are, and read, as the compiler and the planner tell it: no GPU is needed.

    python -m benchmarks.kernels.attention_report [--before OLD.json] --json REPORT.json

For each kernel its registers, shared memory, spills and blocks per multiprocessor; for each way a unit can take, how
many SASS instructions a thread meets: those of a kernel that has this way alone, each counted once (branches that are
not taken too, merging too), and those of its tile loop once for every tile. For each of the twelve trees that a GPU
is timed on, what its units execute and read. Needs nvcc, and cuobjdump (of CUDA, or as triton brings it).
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.kernels import trees
from benchmarks.kernels.attention_units import PARTIAL_BYTES, WAYS, units_of
from benchmarks.options import make_parser
from engine.commands import run_command
from engine.errors import UserError
from engine.results.provenance import provenance, write_json

CSRC = Path(__file__).resolve().parents[2] / "csrc"
HEADER = "tree_attention/tree_attention_gpu.h"
ARCHS = ("sm_80", "sm_90a")
SHARED_OF_PROCESSOR = {"sm_80": 164 * 1024, "sm_90a": 228 * 1024}  # bytes; 1 KiB of it is kept for each block
REGISTERS, WARPS = 65_536, 64  # of a multiprocessor; a warp's registers are given out in parts of 256
PROBE = """#include "{header}"
namespace ttc {{ namespace gpu {{
TTC_KERNEL(kThreads) probe(AttentionArgs args) {{
    using T = Bf16;
    constexpr int kDim = {dim};
    {way}
}}
}} }}
"""
SIZES = """#include <cstdio>
#include "{header}"
int main() {{ printf("%d %d %d", ttc::gpu::kThreads, ttc::gpu::kSharedBytes<64>, ttc::gpu::kSharedBytes<128>); }}
"""


def tool(name: str) -> str:
    """A program of the CUDA toolkit. Raises UserError where there is none."""
    import triton

    bundled = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    found = shutil.which(name) or (str(bundled) if bundled.exists() else None)
    if found is None:
        raise UserError(f"attention_report needs {name}, and found it neither on the PATH nor in triton")
    return found


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"attention_report: {command[0]} failed: {(done.stderr or done.stdout).strip()[-800:]}")
    return done.stdout + done.stderr


def compiled(source: Path, arch: str, folder: Path) -> tuple[Path, str]:
    """(cubin, what ptxas says)."""
    cubin = folder / f"{source.stem}-{arch}.cubin"
    flags = ("-std=c++17", "-O3", f"-I{CSRC}", f"-arch={arch}", "-cubin", "-Xptxas=-v")
    return cubin, run(tool("nvcc"), *flags, str(source), "-o", str(cubin))


def shared_sizes(folder: Path) -> tuple[int, dict[int, int]]:
    """(threads of a block, shared bytes of a block by head size), as the sources say."""
    source, program = folder / "sizes.cpp", folder / "sizes"
    source.write_text(SIZES.format(header=HEADER))
    emulation = CSRC.parent / "tests" / "ttc_kernels" / "cuda_emulation"
    run("c++", "-std=c++17", "-w", f"-I{CSRC}", f"-I{emulation}", str(source), "-o", str(program))
    threads, *sizes = map(int, run(str(program)).split())
    return threads, dict(zip((64, 128), sizes, strict=True))


def kernel_rows(folder: Path) -> list[dict[str, object]]:
    """A row per kernel: type, head size and architecture."""
    threads, shared = shared_sizes(folder)
    rows = []
    for dim in shared:
        for arch in ARCHS:
            cubin, log = compiled(CSRC / "tree_attention" / f"tree_attention_{dim}.cu", arch, folder)
            sass = instructions(cubin)
            for name, text in re.findall(r"entry function '(\S+)' for[^\n]*\n(.*?Used[^\n]*)", log, re.DOTALL):
                registers = int(re.search(r"Used (\d+) registers", text)[1])
                rows.append(
                    {
                        "kernel": f"{'bf16' if 'Bf16' in name else 'fp16'}, head {dim}",
                        "arch": arch,
                        "registers": registers,
                        "shared_bytes": shared[dim],
                        "spilled_bytes": sum(map(int, re.findall(r"(\d+) bytes (?:stack|spill)", text))),
                        "blocks_per_processor": blocks_per_processor(arch, registers, shared[dim], threads),
                        "sass_instructions": len(sass[name]),
                    }
                )
    return rows


def blocks_per_processor(arch: str, registers: int, shared: int, threads: int) -> int:
    """By CUDA's rules of occupancy."""
    warps = threads // 32
    of_warp = -(-32 * registers // 256) * 256
    by_registers = REGISTERS // of_warp // warps
    return min(by_registers, SHARED_OF_PROCESSOR[arch] // (shared + 1024), WARPS // warps)


def instructions(cubin: Path) -> dict[str, list[tuple[int, str]]]:
    """(address, text) of each kernel's SASS, without what fills it up at the end."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in run(tool("cuobjdump"), "-sass", str(cubin)).splitlines():
        if named := re.search(r"Function : (\S+)", line):
            found[named[1]] = listed = []
        elif (part := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)) and part[2] != "NOP":
            listed.append((int(part[1], 16), part[2]))
    return found


def once_and_tile(sass: Sequence[tuple[int, str]], num_steps: int) -> tuple[int, int]:
    """(instructions for one tile, those for each further one).

    The loop over tiles is the smallest backward branch around most matrix products; if a tile takes several steps, that
    is the loop over steps, and the next larger branch around it the loop over tiles.
    """
    loops = []
    for address, text in sass:
        target = re.search(r"BRA\S*\s.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            body = [line for at, line in sass if int(target[1], 16) <= at <= address]
            loops.append((-sum("HMMA" in line for line in body), len(body)))
    inner, outer = sorted(loops)[:2] if num_steps > 1 else sorted(loops)[:1] * 2
    more = (num_steps - 1) * inner[1]
    return len(sass) + more, outer[1] + more


def way_rows(folder: Path) -> list[dict[str, object]]:
    """A row per way that a unit can take, for bfloat16 on sm_90a."""
    rows = []
    for dim in (64, 128):
        for name, way in WAYS.items():
            source = folder / f"{name}-{dim}.cu"
            source.write_text(PROBE.format(header=HEADER, dim=dim, way=way.code))
            (sass,) = instructions(compiled(source, "sm_90a", folder)[0]).values()
            num, tile = once_and_tile(sass, way.num_steps)
            rows.append({"way": name, "head_dim": dim, "warps": way.warps, "one_tile": num, "next_tile": tile})
    return rows


def tree_rows(ways: Sequence[dict]) -> list[dict[str, object]]:
    """A row per tree."""
    sizes = {row["way"]: row for row in ways if row["head_dim"] == trees.HEAD_DIM}
    rows = []
    for case in trees.chosen(trees.TWELVE):
        token_bytes = 2 * case.head_dim * case.dtype.itemsize
        units = [unit for unit in units_of(case) for _ in range(case.num_kv_heads)]
        per_unit = [sizes[u.way]["one_tile"] + (u.num_tiles - 1) * sizes[u.way]["next_tile"] for u in units]
        unique = case.num_keys()[1] * case.num_kv_heads * token_bytes
        read = sum(unit.num_tokens for unit in units) * token_bytes
        rows.append(
            {
                "tree": trees.label(case),
                "units": {name: sum(unit.way == name for unit in units) for name in WAYS},
                "instructions_per_unit": round(sum(per_unit) / len(units)),
                "warp_instructions": sum(n * sizes[u.way]["warps"] for n, u in zip(per_unit, units, strict=True)),
                "unique_kv_bytes": unique,
                "tile_kv_bytes": read,
                "tile_to_unique": round(read / unique, 2),
                "partial_bytes": sum(u.num_partials for u in units) * (case.head_dim * PARTIAL_BYTES + 4),
            }
        )
    return rows


def report() -> dict[str, object]:
    with tempfile.TemporaryDirectory() as name:
        kernels, ways = kernel_rows(Path(name)), way_rows(Path(name))
    return provenance() | {"nvcc": run(tool("nvcc"), "--version").split("release ")[1].split(",")[0]} | {
        "kernels": kernels, "ways": ways, "trees": tree_rows(ways)
    }  # fmt: skip


def show(title: str, rows: Sequence[dict], before: Sequence[dict], keys: int, console: Console) -> None:
    """A table of the rows; where an earlier report has the row, its figures stand before an arrow."""
    old = {tuple(map(str, list(row.values())[:keys])): row for row in before}
    table = Table(title, *list(rows[0])[1:])
    for row in rows:
        earlier = old.get(tuple(map(str, list(row.values())[:keys])), {})
        cells = [
            f"{shown(earlier[name])} → {shown(value)}" if earlier.get(name, value) != value else shown(value)
            for name, value in row.items()
        ]
        table.add_row(*cells)
    console.print(table)


def shown(value: object) -> str:
    if isinstance(value, dict):
        return " ".join(f"{name} {count}" for name, count in value.items() if count)
    if isinstance(value, int) and value >= 1_000_000:
        return f"{value / 1e6:.1f} M"
    return str(value)


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = make_parser("kernels.attention_report", __doc__)
    parser.add_argument("--before", type=Path, help="an earlier report, to be shown and written beside this one")
    args = parser.parse_args(arguments)

    def body() -> None:
        made, before = report(), json.loads(args.before.read_text()) if args.before else None
        console = Console(width=None if sys.stdout.isatty() else 240)
        for title, keys in (("kernels", 2), ("ways", 2), ("trees", 1)):
            show(title, made[title], before[title] if before else [], keys, console)
        write_json(args.json, made if before is None else made | {"before": before})

    return run_command(body)


if __name__ == "__main__":
    sys.exit(main())
