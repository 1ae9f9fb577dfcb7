#!/usr/bin/env python3
"""The library on a GPU: every stage against float64, then how long each takes, next to PyTorch on the same GPU.

    python3 cuda/gpu LIBLAVA.SO [--check | --times] [--only WORD]

Each section is a separate process: neither a fault of the GPU nor a hang costs another section its rows. Sections that failed are named at
the end, and the status is 1 then. --fake: small ones on memory of the host, where libcuda is tests/fake_driver.cpp, by LD_LIBRARY_PATH;
the times are of no meaning there.

Needs PyTorch; nothing else, and no network. The structs are read from the headers, so they are the library's own.
"""
import argparse
import multiprocessing
import os
import sys
import time
import traceback

try:
    import torch
except ImportError:
    sys.exit(f"no PyTorch in {sys.executable}: cuda/gpu.sh runs the Python that PYTHON names")

from checks import Checks, check_sections
from library import Cuda, Fake, Library
from times import Table, time_sections

fork = multiprocessing.get_context("fork")


def run_here(section, results, options):
    """In a separate process."""
    try:
        lava = Library(options.library, Fake() if options.fake else Cuda())
        out = results(lava)
        section(lava, out, torch.Generator(device=lava.gpu.device).manual_seed(options.seed))
    except Exception:
        traceback.print_exc(limit=-2)
        sys.exit(1)
    sys.exit(out.failed > 0)


def run_apart(sections, results, options):
    """Names of the sections that failed."""
    failed = []
    for name, section in sections:
        if options.only not in name and name != "copy":
            continue
        begun = time.monotonic()
        process = fork.Process(target=run_here, args=(section, results, options))
        process.start()
        process.join(options.limit)
        hangs = process.is_alive()
        process.kill()
        # What hangs in the driver may not even die.
        process.join(10)
        how = f"FAILED: over {options.limit:g} s" if hangs else f"FAILED: status {process.exitcode}" if process.exitcode else ""
        if how:
            failed.append(name)
        print(f"-- {name}: {time.monotonic() - begun:.1f} s {how}".rstrip(), flush=True)
    return failed


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("library")
    parser.add_argument("--check", action="store_true", help="no times")
    parser.add_argument("--times", action="store_true", help="no checks")
    parser.add_argument("--only", metavar="WORD", default="", help="only sections whose name has it")
    parser.add_argument("--limit", type=float, default=60, help="seconds that a section may take (60)")
    parser.add_argument("--seed", type=int, default=int.from_bytes(os.urandom(3), "little"), help="of all numbers, to repeat a failure")
    parser.add_argument("--fake", action="store_true", help="no GPU: tests/fake_driver.cpp")
    options = parser.parse_args()
    failed = []
    if not options.times:
        print(f"against float64, --seed {options.seed}:", flush=True)
        failed += run_apart(check_sections(options.fake), Checks, options)
    if not options.check:
        failed += run_apart(time_sections(options.fake), Table, options)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
