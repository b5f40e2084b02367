"""Runs reference cases in this Python's Caffe: ``python oracle_worker.py CASES OUT``, for oracle.py.

CASES is a JSON list of {"name", "prototxt" (text), "npz", "phase", "forwards"}. Writes OUT/NAME.npz with the keys that
the case's .npz compares, and OUT/log.json: for each name the error, if any. A case runs in a forked process, because
Caffe ends the process when a CHECK fails. Needs Python 3.6 or later, numpy and pycaffe.
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np


def run(caffe, case, out):
    """One case, in this process."""
    caffe.set_mode_cpu()
    with tempfile.NamedTemporaryFile("w", suffix=".prototxt") as file:
        file.write(case["prototxt"])
        file.flush()
        net = caffe.Net(file.name, getattr(caffe, case["phase"]))
    given = np.load(case["npz"])
    for key in given.files:
        kind, _, name = key.partition("/")
        if kind == "in":
            net.blobs[name].reshape(*given[key].shape)
            net.blobs[name].data[...] = given[key]
        elif kind == "param":
            blob(net, name).data[...] = given[key]
    for _ in range(case["forwards"]):
        net.forward()
    found = {}
    for key in given.files:
        kind, _, name = key.partition("/")
        if kind == "out":
            found[key] = net.blobs[name].data.copy()
        elif kind == "after":
            found[key] = blob(net, name).data.copy()
    kinds = {key.partition("/")[0] for key in given.files}
    if kinds & {"diff", "pdiff"}:
        for name in net.params:
            for parameter in net.params[name]:
                parameter.diff[...] = 0
        for key in given.files:
            if key.startswith("seed/"):
                net.blobs[key[5:]].diff[...] = given[key]
        net.backward()
    for key in given.files:
        kind, _, name = key.partition("/")
        if kind == "diff":
            found[key] = net.blobs[name].diff.copy()
        elif kind == "pdiff":
            found[key] = blob(net, name).diff.copy()
    np.savez(str(Path(out) / (case["name"] + ".npz")), **found)


def blob(net, name):
    """The parameter of LAYER/I."""
    layer, _, index = name.rpartition("/")
    return net.params[layer][int(index)]


def forked(caffe, case, out):
    """Runs the case in a forked process; returns the error in a line, or ""."""
    with tempfile.TemporaryFile() as errors:
        child = os.fork()
        if not child:
            os.dup2(errors.fileno(), 2)
            try:
                run(caffe, case, out)
            except BaseException as error:
                os.write(2, (type(error).__name__ + ": " + str(error)).encode())
                os._exit(1)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if not status:
            return ""
        errors.seek(0)
        lines = [line for line in errors.read().decode("utf-8", "replace").splitlines() if line.strip()]
        fatal = [line for line in lines if line.startswith("F") or "Error" in line]
        return (fatal or lines or [f"status {status}"])[0]


def main():
    """The command."""
    cases, out = sys.argv[1:]
    os.environ["GLOG_minloglevel"] = "2"
    import caffe

    wanted = json.loads(Path(cases).read_text())
    log = {case["name"]: forked(caffe, case, out) for case in wanted}
    (Path(out) / "log.json").write_text(json.dumps(log))


if __name__ == "__main__":
    main()
