"""InnerProduct (fully connected) and Embed (selects rows). Source: inner_product_layer.cpp, embed_layer.cpp."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from caffe_port.layers.base import Layer, layer
from caffe_port.layers.capabilities import Fusible, Product
from caffe_port.layers.functions import symbolic
from caffe_port.spec import products


@layer("InnerProduct")
class InnerProduct(products.InnerProduct, Layer, Fusible):
    """x W' + b; the axes from ``axis`` on are one vector. Weight: (num_output, K), turned with ``transpose``."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(self.from_axis) if self.from_axis < x.dim() else x.unsqueeze(-1)
        return F.linear(flat, self.weight.t() if self.transpose else self.weight, self.bias)

    def fusible(self) -> bool:
        return self.from_axis == 1

    def form_key(self, x: Tensor) -> bool:
        return True

    def form(self, x: Tensor, scale: Tensor | None, bias: Tensor) -> Product:
        matrix = self.weight.detach().t() if self.transpose else self.weight.detach()
        return Product(matrix, bias, x.shape[0], lambda x, linear: linear(x.flatten(1).contiguous()), scale)


@layer("Embed")
class Embed(products.Embed, Layer):
    """The row of the weight with the index in the bottom, + b. Weight: (input_dim, num_output)."""

    def forward(self, x: Tensor) -> Tensor:
        index = x.long()
        if not symbolic(index) and index.numel() and not (0 <= index.min() and index.max() < self.input_dim):
            raise self.shape_error(
                f"rows {int(index.min())} to {int(index.max())}",
                expected=f"numbers from 0 to {self.input_dim - 1}",
            )
        y = F.embedding(index, self.weight)
        return y if self.bias is None else y + self.bias
