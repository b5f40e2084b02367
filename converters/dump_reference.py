#!/usr/bin/env python
"""Writes a reference of a net: what *this* Caffe computes for it, to compare another Caffe with.

Run it with the Python that has your Caffe's pycaffe (2.7 or 3), of any age; it needs only that and numpy 1.10:

    PYTHONPATH=~/caffe/python python dump_reference.py net.prototxt model.caffemodel -o reference.npz
    python dump_reference.py net.prototxt model.caffemodel --caffe ~/caffe/python --input data=image.npy --backward

Then, with caffe_port installed:

    python -m caffe_port.tools.parity net.prototxt model.caffemodel reference.npz

The keys of the file: in/BLOB the inputs; out/BLOB every blob after one forward pass, of a large one instead
sample/BLOB (4096 of its values) and moments/BLOB (mean, deviation, least, largest); switch/BLOB the switches of a 2x2
pooling of stride 2, as 2 * dy + dx inside each window; after/LAYER/I a parameter that the forward pass changed. With
--backward also seed/BLOB, the outputs' diffs, pdiff/LAYER/I of the parameters, and if the definition has
force_backward diff/BLOB of the inputs. With --params also param/LAYER/I, so that no separate weight file is needed.
"""

from __future__ import print_function

import argparse
import os
import re
import sys
import tempfile

import numpy as np

SAMPLED = 4096
WHOLE = 32768
LARGEST_DIFF = 1 << 22

DUMMY = (
    'input: "x" input_dim: 1 input_dim: 1 input_dim: 1 input_dim: 1 '
    'layers { name: "y" type: RELU bottom: "x" top: "y" }'
)


class InputError(Exception):
    """A wrong input; the message is one line."""


# ---- versions of pycaffe


def import_caffe(folder):
    """The caffe module, from ``folder`` if one is given."""
    os.environ.setdefault("GLOG_minloglevel", "2")  # fatal errors are still logged
    if folder:
        sys.path.insert(0, folder)
    try:
        import caffe
    except ImportError as error:
        raise InputError("no pycaffe: %s; set PYTHONPATH to your caffe/python, or give --caffe caffe/python" % error)
    return caffe


def open_net(caffe, prototxt, weights, phase):
    """The net in that phase, on the CPU, for any version of pycaffe.

    Since 2015 the phase belongs to a net. Before, it belonged to the process, was set by a function of the module or of
    any net, and was TRAIN at first; a net drops the other phase's layers when it is built, so it has to be set before.
    """
    files = [prototxt] + ([weights] if weights else [])
    if hasattr(caffe, "TEST"):
        caffe.set_mode_cpu()
        return caffe.Net(*(files + [getattr(caffe, phase)]))
    holder = caffe if hasattr(caffe, "set_phase_test") else any_net(caffe)
    holder.set_mode_cpu()
    getattr(holder, "set_phase_" + phase.lower())()
    return caffe.Net(*files)


def any_net(caffe):
    """A net of one layer."""
    handle, name = tempfile.mkstemp(suffix=".prototxt")
    try:
        os.write(handle, DUMMY.encode("ascii"))
        os.close(handle)
        return caffe.Net(name)
    finally:
        os.remove(name)


# ---- inputs


def read_inputs(given):
    """{blob: array} of the BLOB=FILE.npy options."""
    arrays = {}
    for text in given:
        blob, _, path = text.partition("=")
        if not path:
            raise InputError("--input %s: expected BLOB=FILE.npy" % text)
        try:
            arrays[blob] = np.load(path, allow_pickle=False)
        except (IOError, OSError, ValueError, EOFError) as error:
            raise InputError("%s: not an array that numpy saved (%s)" % (path, error))
        if not isinstance(arrays[blob], np.ndarray) or arrays[blob].dtype.kind not in "buif":
            raise InputError("%s: expected one array of numbers, as np.save writes it" % path)
    return arrays


def fill_inputs(net, arrays, seed):
    """Fill the input blobs with the arrays, or with random numbers; returns the values."""
    unknown = sorted(set(arrays) - set(net.inputs))
    if unknown:
        raise InputError("no input %s; this net's are: %s" % (unknown[0], ", ".join(net.inputs) or "none"))
    random = np.random.RandomState(seed)
    result = {}
    for name in net.inputs:
        blob = net.blobs[name]
        shape = blob.data.shape
        image = len(shape) == 4 and shape[2] > 1
        value = arrays.get(name)
        if value is None:
            # Pixels minus their mean, or numbers like scores.
            value = random.uniform(-110, 140, shape) if image else random.uniform(0, 1, shape)
        elif value.shape != shape:
            if len(value.shape) != len(shape):
                raise InputError("input %s: the array's shape is %s, the net's %s" % (name, value.shape, shape))
            blob.reshape(*value.shape)
        net.blobs[name].data[...] = value
        result[name] = net.blobs[name].data.copy()
    return result


# ---- results


def window_switches(data):
    """Positions inside their windows, if ``data`` holds the switches of a 2x2 pooling of stride 2; else None.

    A switch is y * W + x of the pooled plane, whose width W is unknown here: 2w, or 2w - 1 if an odd number was
    rounded up, or 2w + 1 if it was rounded down. Only the true one places every switch in its window.
    """
    if data.ndim != 4 or data.shape[2] * data.shape[3] < 2:
        return None
    if not (np.abs(data) < 1 << 24).all() or not np.array_equal(data, np.floor(data)):
        return None
    h, w = data.shape[2:]
    flat = data.astype(np.int64)
    for width in (2 * w, 2 * w - 1, 2 * w + 1):
        dy = flat // width - 2 * np.arange(h)[:, None]
        dx = flat % width - 2 * np.arange(w)
        if ((dy >= 0) & (dy < 2) & (dx >= 0) & (dx < 2)).all():
            return (2 * dy + dx).astype(np.uint8)
    return None


def record_blob(record, name, data, whole):
    """Keep a blob, or 4096 of its values and its moments."""
    data = np.array(data, dtype=np.float32)
    if data.size <= whole:
        record["out/" + name] = data
    else:
        wide = data.astype(np.float64)
        record["sample/" + name] = data.ravel()[np.random.RandomState(data.size).randint(0, data.size, SAMPLED)]
        record["moments/" + name] = np.array([wide.mean(), wide.std(), wide.min(), wide.max()])
    switches = None if "_split_" in name else window_switches(data)
    if switches is not None:
        record["switch/" + name] = switches


def parameters(net):
    """(LAYER/I, blob) of all parameters."""
    return [("%s/%d" % (layer, i), blob) for layer, blobs in net.params.items() for i, blob in enumerate(blobs)]


def forward(net, record, whole, keep_params):
    """One forward pass; returns its results and the parameters that it changed."""
    before = {key: blob.data.copy() for key, blob in parameters(net) if keep_params or blob.data.size <= whole}
    if keep_params:
        record.update(("param/" + key, array) for key, array in before.items())
    net.forward()
    for name, blob in net.blobs.items():
        if not np.array_equal(record.get("in/" + name), blob.data):
            record_blob(record, name, blob.data, whole)
    for key, blob in parameters(net):
        if key in before and not np.array_equal(before[key], blob.data):
            record["after/" + key] = blob.data.copy()


def forces_backward(prototxt):
    """Whether the definition requests the diffs of its inputs; otherwise Caffe leaves undefined values there."""
    with open(prototxt) as file:
        return re.search(r"^[^#\n]*\bforce_backward\s*:\s*(true|t|1)\b", file.read(), re.M | re.I) is not None


def backward(net, record, seed, inputs):
    """One backward pass from the losses, and random diffs of the other outputs; returns the keys that are too large
    to store."""
    random = np.random.RandomState(seed + 1)
    for name in net.outputs:
        diff = net.blobs[name].diff
        if not diff.any():  # a loss has its weight there
            diff[...] = random.standard_normal(diff.shape)
            record["seed/" + name] = diff.copy()
    for _, blob in parameters(net):
        blob.diff[...] = 0
    net.backward()
    diffs = [("diff/" + name, net.blobs[name]) for name in inputs]
    diffs += [("pdiff/" + key, blob) for key, blob in parameters(net)]
    record.update((key, blob.diff.copy()) for key, blob in diffs if blob.diff.size <= LARGEST_DIFF)
    if not any(blob.diff.any() for _, blob in diffs):
        raise InputError("backward changed nothing: add `force_backward: true` to the prototxt (or give it weights)")
    return [key for key, blob in diffs if blob.diff.size > LARGEST_DIFF]


# ---- the file


def check_output(path, force):
    """Raise before the work if the file cannot be written."""
    folder = os.path.dirname(os.path.abspath(path))
    if os.path.exists(path) and not force:
        raise InputError("%s: exists already; pass -f to overwrite it" % path)
    if not os.path.isdir(folder):
        raise InputError("%s: there is no folder %s" % (path, folder))


def write(path, record):
    """Writes the file atomically."""
    folder, name = os.path.split(os.path.abspath(path))
    handle, temporary = tempfile.mkstemp(prefix="." + name + ".", suffix=".tmp", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file:
            np.savez_compressed(file, **record)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)
        os.rename(temporary, path)
    except BaseException:
        os.remove(temporary)
        raise


def run(arguments):
    for path in [arguments.prototxt, arguments.weights]:
        if path and not os.path.isfile(path):
            raise InputError("%s: no such file" % path)  # Caffe itself would abort
    output = arguments.output or os.path.splitext(arguments.prototxt)[0] + ".npz"
    check_output(output, arguments.force)
    arrays = read_inputs(arguments.input)
    caffe = import_caffe(arguments.caffe)
    net = open_net(caffe, arguments.prototxt, arguments.weights, arguments.phase)
    if not net.inputs:
        print("note: the net has no inputs but reads data files, which the other Caffe must read too")
    record = {"in/" + name: value for name, value in fill_inputs(net, arrays, arguments.seed).items()}
    forward(net, record, arguments.whole, arguments.params)
    if arguments.backward:
        inputs = net.inputs if forces_backward(arguments.prototxt) else []
        for key in backward(net, record, arguments.seed, inputs):
            print("note: %s has more than %d values and was omitted" % (key, LARGEST_DIFF))
    write(output, record)
    print("wrote %s: %d arrays, %d bytes" % (output, len(record), os.path.getsize(output)))
    print(
        "then, with caffe_port: python -m caffe_port.tools.parity --phase %s %s %s %s"
        % (arguments.phase, arguments.prototxt, arguments.weights or "", output)
    )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prototxt")
    parser.add_argument("weights", nargs="?", help="without it, the net's fillers draw the parameters: add --params")
    parser.add_argument("-o", "--output", metavar="FILE", help="default: the prototxt's name with .npz")
    parser.add_argument("-f", "--force", action="store_true", help="overwrite an existing file")
    parser.add_argument("--caffe", metavar="DIR", help="the folder `python` of your Caffe")
    parser.add_argument("--phase", choices=("TEST", "TRAIN"), default="TEST", help="default: TEST")
    parser.add_argument(
        "--input",
        metavar="BLOB=FILE.npy",
        action="append",
        default=[],
        help="an input blob's array, of the net's shape; default: random numbers",
    )
    parser.add_argument("--seed", type=int, default=1, help="of the random numbers; default: 1")
    parser.add_argument(
        "--whole", type=int, default=WHOLE, metavar="N", help="blobs of more values are sampled; default: %(default)s"
    )
    parser.add_argument("--params", action="store_true", help="keep the parameters too")
    parser.add_argument("--backward", action="store_true", help="also run backward and keep the diffs")
    arguments = parser.parse_args(argv)
    try:
        run(arguments)
    except (InputError, IOError, OSError) as error:
        print("%s: error: %s" % (parser.prog, error), file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
