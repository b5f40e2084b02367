"""Records of PSPNet's fork. Source: the file that caffe_port/layers/pspnet.py names."""

from __future__ import annotations

from caffe_port.spec.base import Blob, Shape, Spec, record


@record("BN", "bn_param", ("pspnet",))
class MovingBN(Spec):
    """Slope, bias and the moving statistics; with ``frozen`` none of them is learned."""

    blob_specs = (
        Blob("slope", 4, "slope_filler"),
        Blob("bias", 4, "bias_filler"),
        Blob("mean", 4, learned=False),
        Blob("variance", 4, learned=False),
    )
    reads = ("momentum", "eps", "frozen")
    ignores = ("engine",)

    def setup(self, x: Shape) -> None:
        self.refuse_shape(len(x) != 4, f"a bottom of shape {x}", expected="4 axes: num, channels, height, width")
        self.channel_shape = (1, x[1], 1, 1)
        self.make_blobs(*[self.channel_shape] * 4)

    def reshape(self, x: Shape) -> list[Shape]:
        wrong = len(x) != 4 or x[1] != self.channel_shape[1]
        self.refuse_shape(wrong, f"a bottom of shape {x}", expected=f"4 axes, {self.channel_shape[1]} channels")
        return [x]
