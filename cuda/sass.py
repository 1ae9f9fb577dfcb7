#!/usr/bin/env python3
"""What the hottest loop of each kernel is made of, read from its machine code: where there is no GPU, all that is known of speed.

    sass.py NVCC_ROOT CUBIN...

The loop is the smallest one with tensor-core instructions, else the one with the most reads of memory, of 16 bytes if there are any.
Instructions that a branch jumps over are counted like all others: a logit cap's, say, or those of keys that not all rows see.
"""
import pathlib
import re
import sys

from resources import disassemble

CLASSES = {
    "tensor": "HMMA",
    "matrix": "LDSM",
    "special": "MUFU",
    "float": "FADD FMUL FFMA FMNMX FSETP FSEL FSET FCHK",
    "double": "DADD DMUL DFMA DSETP",
    "shuffle": "SHFL",
    "shared": "LDS STS ATOMS",
    "global": "LD LDG LDGSTS ST STG ATOM ATOMG RED",
    "spill": "LDL STL",
    "branch": "BRA BSSY BSYNC EXIT CALL BAR WARPSYNC BREAK",
}
CLASS_OF = {name: of for of, names in CLASSES.items() for name in names.split()}


def name_of(instruction):
    """HMMA of "@!P0 HMMA.16816.F32.BF16 R84, ..."."""
    return re.sub(r"^@!?\w+\s+", "", instruction).split()[0].split(".")[0]


def loops(code):
    """First and last instruction of each loop of [(address, instruction)]: branches back."""
    at = {address: i for i, (address, _) in enumerate(code)}
    for i, (address, instruction) in enumerate(code):
        target = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if target and int(target[1], 16) < address:
            yield at[int(target[1], 16)], i


def reads(body):
    """How many, those of 16 bytes first."""
    its = [instruction for instruction in body if name_of(instruction) in ("LD", "LDG")]
    return sum(".128" in instruction for instruction in its), len(its)


def hottest(code):
    """The instructions of the loop that most time is spent in, or none."""
    instructions = [instruction for _, instruction in code]
    bodies = sorted((instructions[first : last + 1] for first, last in loops(code)), key=len)
    tensor = [body for body in bodies if any(name_of(instruction) == "HMMA" for instruction in body)]
    return tensor[0] if tensor else max(bodies, key=reads, default=[])


def main(root, *cubins):
    print(f"{'kernel':<28} {'arch':<7} {'all':>5}" + "".join(f"{name:>8}" for name in [*CLASSES, "other"]))
    for cubin in map(pathlib.Path, cubins):
        for kernel, code in disassemble(f"{root}/bin", cubin).items():
            body = [CLASS_OF.get(name_of(instruction), "other") for instruction in hottest(code)]
            counts = "".join(f"{body.count(name):>8}" for name in [*CLASSES, "other"])
            print(f"{kernel:<28} {cubin.suffixes[0][1:]:<7} {len(body):>5}{counts}")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
