"""Malformed files, arrays and flags: every one must be taken or refused in one line, quickly, leaving no half file.

    python tests/fuzz/fuzz_inputs.py                              # 19,000 inputs, some minutes
    python tests/fuzz/fuzz_inputs.py --inputs 600 --seed 3 --out fuzz.json
    python tests/fuzz/fuzz_inputs.py --only resumed unit          # these targets alone

For each input, drawn from --seed and its number: the call returns, or raises ValueError (files also OSError; flags end
with status 0, 1 or 2 and one line on stderr). Anything else - another error, more CPU time than --seconds, a .part
file, a file that has grown, a training that ends elsewhere, a unit that comes back as something else, more memory than
--gigabytes - is a failure, printed with its number. Exit status 1 if there was one.

Files are damaged by accident (truncated, altered, exchanged, replaced by pipes, devices, links, files of terabytes) and
on purpose ("forged": another content under checksums that fit; headers that claim what is not there).
"""

import argparse
import json
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

from targets import Targets  # noqa: E402  # the package may not be installed


class Slow(Exception):
    """An input took too long."""


def stop(number: int, frame: object) -> None:
    """The alarm."""
    raise Slow


def one(call: Callable[[random.Random], None], chance: random.Random, seconds: int) -> str:
    """ "taken", "refused", or what went wrong."""
    signal.setitimer(signal.ITIMER_PROF, seconds)  # CPU time: another may stop this process for a while
    signal.alarm(30 * seconds)  # it may also wait for ever
    try:
        call(chance)
    except (ValueError, OSError) as error:
        return "refused" if "\n" not in str(error).strip() else f"failed: more than one line: {error}"
    except Slow:
        return f"failed: more than {seconds} s of CPU time, or it waits"
    except Exception as error:  # whatever else comes is what this script looks for
        return f"failed: {type(error).__name__}: {error}"
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
    return "taken"


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=19_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=int, default=10, help="CPU time that an input may take (default 10)")
    parser.add_argument("--gigabytes", type=int, default=8, help="of data in memory, the imports' included (default 8)")
    parser.add_argument("--only", nargs="+", metavar="TARGET", help="targets (default all)")
    parser.add_argument("--number", type=int, help="this input alone, with its traceback")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the counts as JSON")
    arguments = parser.parse_args()
    out = arguments.out.resolve() if arguments.out else None
    for name in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(name, stop)
    resource.setrlimit(resource.RLIMIT_DATA, (arguments.gigabytes * 2**30,) * 2)
    counts: dict[str, Counter] = {}
    failures, began = [], time.process_time()
    with tempfile.TemporaryDirectory() as name:
        targets = Targets(Path(name).resolve() / "files")
        os.chdir(name)  # where folders with names like "nan" may be made
        calls = targets.calls()
        if arguments.number is not None:
            calls[arguments.number % len(calls)](random.Random(f"{arguments.seed} {arguments.number}"))
            return 0
        for number in range(arguments.inputs):
            call = calls[number % len(calls)]
            if arguments.only and call.__name__ not in arguments.only:
                continue
            found = one(call, random.Random(f"{arguments.seed} {number}"), arguments.seconds)
            try:
                targets.restore()
            except AssertionError as error:
                found = f"failed: {error}"
            counts.setdefault(call.__name__, Counter())[found.partition(":")[0]] += 1
            if found.startswith("failed"):
                failures.append({"number": number, "target": call.__name__, "what": found[:500]})
                print(f"input {number} ({call.__name__}) {found[:300]}", file=sys.stderr)
        os.chdir(ROOT)
    cpu_s = time.process_time() - began
    for name, counted in counts.items():
        print(f"{name:18} {counted['taken']:6} taken {counted['refused']:6} refused {counted['failed']:4} failed")
    n_inputs = sum(counted.total() for counted in counts.values())
    print(f"{n_inputs} inputs, seed {arguments.seed}, {len(failures)} failures, {cpu_s:.0f} CPU s")
    if out:
        content = {"inputs": n_inputs, "seed": arguments.seed, "cpu_s": cpu_s, "failures": failures}
        out.write_text(json.dumps({**content, "counts": counts}, indent=2) + "\n")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
