#!/usr/bin/env python3
"""Registers, shared memory and spills of every kernel, and whether its tensor-core instructions are there.

    resources.py check NVCC_ROOT CUBIN...     against resources.txt: no kernel spills more, none is missing or new
    resources.py update NVCC_ROOT CUBIN...    writes resources.txt

A cubin NAME.sm_XX.cubin comes with the output of ptxas -v, NAME.sm_XX.log.
"""
import os
import pathlib
import re
import subprocess
import sys

TABLE = pathlib.Path(__file__).with_name("resources.txt")
NORMS = 16  # tensor-core instructions of the values' norms, in both types
COLUMNS = ("kernel", "arch", "registers", "shared", "spilled")


def read_log(path):
    """(kernel, arch, registers, static shared bytes, spilled bytes) of each kernel in the output of ptxas -v."""
    rows = []
    for line in path.read_text().splitlines():
        if found := re.search(r"Compiling entry function '(\w+)' for '(\w+)'", line):
            rows.append([*found.groups(), 0, 0, 0])
        elif found := re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", line):
            if rows:
                rows[-1][4] += sum(map(int, found.groups()))
        elif found := re.search(r"Used (\d+) registers", line):
            rows[-1][2] = int(found[1])
            shared = re.search(r"(\d+) bytes smem", line)
            rows[-1][3] = int(shared[1]) if shared else 0
    return rows


def disassemble(tools, cubin):
    """[(address, instruction)] of each kernel."""
    code, kernel = {}, None
    # cuobjdump looks for nvdisasm, which is in the same folder.
    environment = os.environ | {"PATH": f"{tools}:{os.environ['PATH']}"}
    command = [f"{tools}/cuobjdump", "-sass", cubin]
    sass = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment).stdout
    for line in sass.splitlines():
        if found := re.search(r"Function : (\w+)", line):
            kernel = code.setdefault(found[1], [])
        elif (found := re.match(r"\s+/\*([0-9a-f]{4,})\*/\s+(.*?);", line)) and kernel is not None:
            kernel.append((int(found[1], 16), found[2].strip()))
    return code


def main(mode, root, *cubins):
    rows, faults = [], []
    for cubin in map(pathlib.Path, cubins):
        rows += read_log(cubin.with_suffix(".log"))
        if not cubin.name.startswith(("score.", "attend.")):
            continue
        for kernel, code in disassemble(f"{root}/bin", cubin).items():
            n = sum("HMMA" in instruction for _, instruction in code)
            wants = re.search(r"_b?f16_", kernel) is not None
            if wants != (n > (NORMS if "columns" in kernel else 0)):
                faults.append(f"{kernel} in {cubin.name}: {n} tensor-core instructions")
    rows.sort(key=lambda row: (row[0], row[1]))
    text = [f"{COLUMNS[0]:<28} {COLUMNS[1]:<8} {COLUMNS[2]:>9} {COLUMNS[3]:>7} {COLUMNS[4]:>8}"]
    text += [f"{k:<28} {a:<8} {r:>9} {s:>7} {p:>8}" for k, a, r, s, p in rows]
    if mode == "update":
        TABLE.write_text("\n".join(text) + "\n")
        print(f"{TABLE.name}: {len(rows)} rows")
    else:
        known = {tuple(line.split()[:2]): line.split() for line in TABLE.read_text().splitlines()[1:]}
        for kernel, arch, _, _, spilled in rows:
            row = known.pop((kernel, arch), None)
            if row is None:
                faults.append(f"{kernel} for {arch} is not in {TABLE.name}: run make cuda-resources")
            elif spilled > int(row[4]):
                faults.append(f"{kernel} for {arch} spills {spilled} bytes, {row[4]} in {TABLE.name}")
        faults += [f"{kernel} for {arch} is in {TABLE.name} and nowhere else" for kernel, arch in known]
        print(f"{len(rows)} kernels, {sum(row[4] > 0 for row in rows)} of them spill, {len(faults)} faults")
    if faults:
        sys.exit("\n".join(faults))


if __name__ == "__main__":
    if len(sys.argv) < 4 or sys.argv[1] not in ("check", "update"):
        sys.exit(__doc__)
    main(*sys.argv[1:])
