"""Hostile files for every reader, many of them: what ends other than well or in one line is a fault.

    python benchmarks/fuzz.py [READER ...] [--cases 100000] [--first 0] [--seed 1] [--coverage]
    python benchmarks/fuzz.py READER --case 4711 [--keep FOLDER]     one case again, with its traceback

The cases are those of tests/fuzzing.py, which says what counts as a fault. Each reader's cases run in a child process
that may take 3 GB and 10 s more than it should before it is ended. The exit status is 1 if there is a fault.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import fuzzing  # noqa: E402

fuzzing.load()


def again(name: str, seed: int, number: int, keep: str | None) -> None:
    """One case alone; where its files go, what it says."""
    folder = Path(keep or tempfile.mkdtemp(prefix="fuzz"))
    folder.mkdir(exist_ok=True)
    path, structured = fuzzing.write_case(fuzzing.READERS[name], fuzzing.seeded(name, seed, number), folder)
    print(f"{path} ({'structured' if structured else 'damaged'})")
    start = time.process_time()
    print(fuzzing.check(fuzzing.READERS[name], path) or "accepted")
    print(f"{time.process_time() - start:.3f} s")


def measured(names: list[str], seed: int, cases: int) -> str:
    """The share of the branches of the readers' modules that their cases take, measured in this process.

    Functions that write are left out. Readers that share a module are counted together.
    """
    import coverage

    readers = [fuzzing.READERS[name] for name in names]
    files = sorted({str(ROOT / "caffe_port" / module) for reader in readers for module in reader.modules})
    watch = coverage.Coverage(branch=True, include=files, data_file=None)
    watch.exclude(r"^\s*def _?write_|^\s*if TYPE_CHECKING:")
    watch.start()
    for reader in readers:
        with tempfile.TemporaryDirectory(prefix="fuzz") as name:
            for number in range(cases):
                case = Path(name) / str(number)
                case.mkdir()
                path, _ = fuzzing.write_case(reader, fuzzing.seeded(reader.name, seed, number), case)
                with suppress(Exception):  # told by a run without --coverage
                    fuzzing.check(reader, path)
    watch.stop()
    out = []
    for file in files:
        numbers = watch._analyze(file).numbers
        share = numbers.n_executed_branches / max(1, numbers.n_branches)
        out.append(f"{Path(file).relative_to(ROOT / 'caffe_port')} {share:.0%}")
    return f"{', '.join(names)}: branches after {cases} cases each: {', '.join(out)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", help=f"default: all ({', '.join(fuzzing.READERS)})")
    parser.add_argument("--cases", type=int, default=100_000, help="for each reader, to this number (default 100000)")
    parser.add_argument("--first", type=int, default=0, help="number of the first one, to continue")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--case", type=int, help="run this one alone, here")
    parser.add_argument("--keep", help="with --case: the folder for its files")
    parser.add_argument("--coverage", action="store_true", help="count branches (needs coverage.py); in this process")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        fuzzing.main(args.serve)
        return
    unknown = [name for name in args.readers if name not in fuzzing.READERS]
    if unknown:
        parser.error(f"no reader {unknown[0]}; there are {', '.join(fuzzing.READERS)}")
    faults = 0
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does, with a report
    if args.coverage:
        print(measured(args.readers or list(fuzzing.READERS), args.seed, args.cases))
        return
    for name in args.readers or fuzzing.READERS:
        if args.case is not None:
            again(name, args.seed, args.case, args.keep)
        else:
            start = time.perf_counter()
            command = [sys.executable, __file__, "--serve"]
            report = fuzzing.run(name, args.cases, args.seed, command, first=args.first)
            faults += len(report.faults)
            print(
                f"{name}: {report.cases} cases, {report.structured} structured, {report.accepted} accepted, "
                f"{len(report.faults)} faults; most {report.most_memory / 1e6:.0f} MB, {report.most_seconds:.2f} s; "
                f"{time.perf_counter() - start:.0f} s altogether",
                flush=True,
            )
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
