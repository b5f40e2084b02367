"""Layers that users write in Python, as in pycaffe.

    import caffe_port

    class Tenfold(caffe_port.Layer):
        def setup(self, bottom, top):
            self.factor = float(self.param_str or 10)

        def reshape(self, bottom, top):
            top[0].reshape(*bottom[0].shape)

        def forward(self, bottom, top):
            top[0].data[...] = self.factor * bottom[0].data

        def backward(self, top, propagate_down, bottom):
            bottom[0].diff[...] = self.factor * top[0].diff

A definition names the module and the class: ``python_param { module: "mine" layer: "Tenfold" param_str: "10" }``. Since
reading a file must not run code that it names, such a layer raises unless the caller allows it.

Source: python_layer.hpp, layer_factory.cpp, python/caffe/_caffe.cpp.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import Function, once_differentiable

from caffe_port.errors import CaffeError
from caffe_port.layers.backward import Backward, Gradients
from caffe_port.layers.base import Layer, Shape, layer
from caffe_port.layers.blobs import ArrayBlob, BlobVec, Copies
from caffe_port.layers.capabilities import RunsCode
from caffe_port.schema.messages import TEST, TRAIN
from caffe_port.schema.plugins import PYTHON_LAYERS

__all__ = ["Python", "PythonLayer"]


class PythonLayer:
    """The base class of users' layers, ``caffe.Layer``.

    Subclasses have ``setup``, ``reshape``, ``forward`` and, where a gradient may be asked for, ``backward``. Exceptions
    that these raise reach the caller unchanged.

    Attributes:
        blobs: the parameters; ``setup`` creates them with ``blobs.add_blob(*shape)``.
        param_str: ``python_param``'s field of that name. phase: TRAIN (0) or TEST (1).
        type: "Python".
    """

    type = "Python"
    blobs: BlobVec
    param_str: str
    phase: int
    setup: Any
    reshape: Any
    forward: Any
    backward: Any

    def __init__(self, layer_param: Any) -> None:
        self.layer_param = layer_param

    @property
    def param_str_(self) -> str:
        """The name of ``param_str`` before BVLC Caffe 1.0."""
        return self.param_str


@layer("Python")
class Python(Layer, RunsCode):
    """A user's layer: the user's object over numpy arrays, as one operation of autograd.

    Attributes:
        user: the user's object.
    """

    keeps_state = True
    untraceable = "it runs Python code"

    def setup(self, *shapes: Shape) -> None:
        p = self.p
        p.skip("share_in_parallel")
        self.reads_bottoms, self.reads_tops = tuple(range(self.n_bottoms)), tuple(range(self.n_tops))
        if not self.allowed:
            raise self.error(
                f"it runs the code of Python module {p.module!r}",
                remedy=f"to allow it: allow_python=True, --python-layers, or {PYTHON_LAYERS}=1 in the environment",
            )
        self.register_buffer("like", torch.empty(0), persistent=False)
        self.bottom = [ArrayBlob() for _ in range(self.n_bottoms)]
        names = self.fields.bottom
        own = [ArrayBlob() for _ in range(self.n_tops)]
        self.top = [self.bottom[names.index(n)] if n in names else b for n, b in zip(self.fields.top, own, strict=True)]
        self.user = self._class(p.module, p.layer)(self.fields.message)
        self.user.blobs, self.user.param_str = BlobVec(self), p.param_str
        self.user.phase = TRAIN if self.phase == "TRAIN" else TEST
        self._shape_bottoms(shapes)
        self.user.setup(self.bottom, self.top)
        for method in ("reshape", "forward"):
            if not callable(getattr(self.user, method, None)):
                raise self.error(f"class {p.layer} without {method}", expected="setup, reshape, forward and backward")

    def _class(self, module: str, name: str) -> type[PythonLayer]:
        try:
            found = getattr(importlib.import_module(module), name, None)
        except ModuleNotFoundError as error:
            parents = [module.rsplit(".", i)[0] for i in range(module.count(".") + 1)]
            if error.name in parents:
                raise self.error(f"no Python module {error.name!r}", remedy="put its folder on PYTHONPATH") from None
            if (error.name or "").partition(".")[0] == "caffe":
                remedy = "call caffe_port.install_as_caffe() first, or run the script by caffe-port as-caffe"
                raise self.error(f"Python module {module!r}, which imports caffe", remedy=remedy) from None
            found_there = f"Python module {module!r}, which imports {error.name}, a module that is not installed"
            raise self.error(found_there, remedy="install it, or put its folder on PYTHONPATH") from error
        except SyntaxError as error:
            where = f"{error.filename}:{error.lineno}"
            found_there = f"Python module {module!r}, which is no Python 3 ({where}: {error.msg})"
            raise self.error(found_there, remedy="bring it to Python 3, in which print is a function") from None
        except CaffeError:
            raise
        except (Exception, SystemExit) as error:
            last = traceback.extract_tb(error.__traceback__)[-1]
            found_there = f"Python module {module!r}, which fails ({last.filename}:{last.lineno}: {_named(error)})"
            raise self.error(found_there, remedy="correct it") from error
        if not (isinstance(found, type) and issubclass(found, PythonLayer)):
            raise self.error(f"{module}.{name}: {found}", expected="a class derived from caffe.Layer")
        return found

    def _shape_bottoms(self, shapes: Sequence[Shape]) -> None:
        for blob, shape in zip(self.bottom, shapes, strict=True):
            blob.reshape(*shape)

    def reshape(self, *shapes: Shape) -> list[Shape]:
        self._shape_bottoms(shapes)
        self.user.reshape(self.bottom, self.top)
        return [tuple(blob.shape) for blob in self.top]

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        tops = _PythonFunction.apply(self, *bottoms, *self.parameters()) if self.n_tops else self.run(bottoms)
        return tops if isinstance(tops, tuple) else (tops,)

    def run(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The user's ``reshape`` and ``forward``, which Caffe calls one after the other in every pass."""
        for blob, tensor in zip(self.bottom, bottoms, strict=True):
            array = self._host(tensor)
            blob.hold(array.copy() if blob in self.top else array)
        for blob in self.top:
            blob.hold(blob.data.astype(torch.empty((), dtype=self.like.dtype).numpy().dtype, copy=False))
        self.user.reshape(self.bottom, self.top)
        self.user.forward(self.bottom, self.top)
        self.copies.flush()
        return tuple(self._tensor(blob.data) for blob in self.top)

    def caffe_gradient(self, b: Backward) -> Gradients:
        """The result of the user's ``backward`` on the current blobs."""
        found = self.run_back(b.bottoms, b.diffs, b.wanted, b.tops)
        return [grad if wanted else None for grad, wanted in zip(found, b.wanted, strict=True)], {}

    def run_back(
        self,
        bottoms: Sequence[Tensor],
        grads: Sequence[Tensor],
        wanted: Sequence[bool],
        tops: Sequence[Tensor] | None = None,
    ) -> list[Tensor]:
        """The user's ``backward``: the bottoms' gradients. It adds the parameters' gradients to their diffs itself.

        Args:
            tops: the tops' current values, if they differ from those of the user's ``forward``.
        """
        if not callable(getattr(self.user, "backward", None)):
            raise self.error(f"class {self.p.layer} without backward", expected="one, since a gradient is required")
        for blob, tensor in zip(self.bottom, bottoms, strict=True):
            if blob not in self.top:
                blob.hold(self._host(tensor))
        for i, (blob, grad) in enumerate(zip(self.top, grads, strict=True)):
            blob.hold(blob.data if tops is None else self._host(tops[i]).copy(), self._host(grad).copy())
        self.user.backward(self.top, list(wanted), self.bottom)
        self.copies.flush()
        return [self._tensor(blob.diff) for blob in self.bottom]

    @staticmethod
    def _host(tensor: Tensor) -> np.ndarray:
        return Copies().array("", tensor.contiguous())

    def _tensor(self, array: np.ndarray) -> Tensor:
        """A copy, since the user's arrays are reused in the next pass."""
        return torch.from_numpy(array.copy()).to(self.like)


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


class _PythonFunction(Function):
    """The user's forward and backward as one operation; parameters are inputs so that backward is called for them."""

    @staticmethod
    def forward(ctx: Any, owner: Python, *inputs: Tensor) -> tuple[Tensor, ...]:
        ctx.owner, ctx.spare = owner, len(inputs) - owner.n_bottoms
        bottoms = inputs[: owner.n_bottoms]
        ctx.save_for_backward(*bottoms)
        return owner.run(bottoms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        bottoms = ctx.saved_tensors
        wanted = ctx.needs_input_grad[1 : 1 + len(bottoms)]
        found = ctx.owner.run_back(bottoms, grads, wanted)
        return (None, *(g if w else None for g, w in zip(found, wanted, strict=True)), *(None,) * ctx.spare)
