"""Counts which public definitions build: the files of a list, found below a folder by their contents.

    python benchmarks/known_nets.py FOLDER LIST.tsv [--verbose] [--seconds 20]

LIST has lines "md5, tab, name". A definition that is fully known (``caffe-port info``) is built, in TEST, or in TRAIN
where it has no net in TEST, in a separate process limited to these seconds and 12 GB. One that does not build must give
the reason in one line; nets that lack a file (data, weights, a Python module) are counted separately.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import multiprocessing
import os
import resource
import sys
from pathlib import Path

from caffe_port.errors import CaffeError
from caffe_port.tools.summary import summarize

ABSENT = ("(looked for", "no such file", "it runs the code of Python module", "to allow it: allow_writes")
"""Texts of errors about missing files or missing permissions."""


def build(path: str) -> tuple[str, str]:
    """The result ("built", "absent", "refused", "crashed", "unknown", "solver"), and the message."""
    try:
        found = summarize(path)
        if found.unknown or found.kind == "unreadable":
            return "unknown", ""
        if found.kind != "net":
            return found.kind, ""
        from caffe_port.net import Net

        Net(path, phase=found.phase or "TEST")
    except CaffeError as error:
        said = str(error)
        return ("absent" if any(word in said for word in ABSENT) else "refused"), said
    except MemoryError:
        return "crashed", "out of memory"
    except Exception as error:  # any other error is not one clear line
        return "crashed", f"{type(error).__name__}: {error}"
    return "built", ""


def _work(path: str, pipe) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    os.chdir(Path(path).parent)
    os.environ["GLOG_minloglevel"] = "2"
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115, PTH123
    pipe.send(build(path))


def tried(path: str, seconds: float) -> tuple[str, str]:
    """:func:`build` in a separate process."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(path, theirs))
    process.start()
    theirs.close()
    try:
        result = ours.recv() if ours.poll(seconds) else ("slow", f"more than {seconds} s")
    except EOFError:
        result = ("crashed", "the process ended")
    process.kill()
    process.join()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("list", type=Path)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--seconds", type=float, default=30)
    arguments = parser.parse_args()
    wanted = {line.split("\t")[0] for line in arguments.list.read_text().splitlines()[1:]}
    files: dict[str, Path] = {}
    for path in sorted(arguments.folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size < 4_000_000:
            digest = hashlib.md5(path.read_bytes()).hexdigest()
            if digest in wanted:
                files.setdefault(digest, path)
    import caffe_port.net  # noqa: F401  once, for all the processes

    said: dict[str, list[str]] = collections.defaultdict(list)
    for path in files.values():
        how, why = tried(str(path), arguments.seconds)
        said[how].append(f"{path}: {why}")
    for how in ("refused", "crashed", "slow", *(["absent"] if arguments.verbose else [])):
        print(*(f"{how}: {line}" for line in said[how]), sep="\n")
    nets = sum(len(said[how]) for how in ("built", "refused", "crashed", "slow"))
    print(
        f"{len(files)} files, {len(said['unknown'])} not fully known, {len(said['solver'])} solvers, "
        f"{len(said['absent'])} nets that lack a file; {len(said['built'])} of the other {nets} nets build"
    )


if __name__ == "__main__":
    main()
