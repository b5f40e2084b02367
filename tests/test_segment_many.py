"""Many pictures at a time: on threads, in batches, by copies of a system."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from threading import Barrier, Thread, current_thread

import numpy as np
import pytest
import torch
from segment_nets import picture, tiny

from caffe_port import native
from caffe_port.errors import CaffeError
from caffe_port.net import Net
from caffe_port.segmentation.ensembles import Refined
from caffe_port.segmentation.inference import Maps, Segmenter
from caffe_port.segmentation.system import System, _copies, segment_all

INPUT = "layer { name: 'x' type: 'Input' top: 'x' input_param { shape { dim: 1 dim: 32 dim: 64 dim: 64 } } }"
CONVOLUTION = """layer { name: 'c' type: 'Convolution' bottom: 'x' top: 'c'
                         convolution_param { num_output: 32 kernel_size: 3 pad: 1 } }"""


def test_many_pictures_give_what_each_gives_alone() -> None:
    """In batches and on threads: with other numbers of classes in each."""
    pictures = [picture(20 + 3 * i, 31 - 2 * i, i) for i in range(9)]
    for low in (0.0, 0.45, 0.5, 1.0):
        segmenter = Segmenter(tiny(), threshold=low)
        found = list(segment_all(segmenter, range(9), pictures.__getitem__, lambda i, _, one: (i, one), workers=2))
        assert [i for i, _ in found] == list(range(9))
        for i, one in found:
            alone = segmenter(pictures[i])
            assert one.labels == alone.labels
            np.testing.assert_allclose(one.maps, alone.maps, atol=1e-6)
            np.testing.assert_array_equal(one.pixels, alone.pixels)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_copies_of_a_small_system_compute_side_by_side(three_threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """They share the parameters; a net that calls the user's code, or whose blobs are large, has no copies."""
    segmenter = Segmenter(tiny(), threshold=0.45)
    one, *others = found = _copies(segmenter, 3)
    assert one is segmenter
    assert len(found) == 3
    for other in others:
        assert other.net is not segmenter.net
        pairs = zip(other.net.parameters(), segmenter.net.parameters(), strict=True)
        assert all(mine is its for mine, its in pairs)
    used, both = list[str](), Barrier(2)

    compute = Segmenter.compute

    def noted(self: Segmenter, prepared: Sequence[np.ndarray]) -> list[Maps]:
        used.append(f"{current_thread().name} {torch.get_num_threads()}")
        if len(used) <= 2:
            both.wait(timeout=60)  # two at a time
        return compute(self, prepared)

    monkeypatch.setattr(Segmenter, "compute", noted)
    pictures = [picture(25 + i, 30, i) for i in range(8)]
    done = list(segment_all(segmenter, range(8), pictures.__getitem__, lambda i, _, one: (i, one.pixels), workers=2))
    assert {word.split()[1] for word in used} == {"1"}
    assert len({*used}) >= 2
    for i, pixels in done:
        np.testing.assert_array_equal(pixels, segmenter(pictures[i]).pixels)


@pytest.mark.parametrize("whose", ["net", "layer", "system", "part"])
def test_what_calls_the_users_code_has_no_copies(whose: str) -> None:
    class Mine(Segmenter):
        pass

    net = tiny()
    system: System = Mine(net) if whose in ("system", "part") else Segmenter(net)
    if whose == "net":
        net.register_forward_hook(lambda *given: None)
    elif whose == "layer":
        net.nodes[1][1].register_forward_hook(lambda *given: None)
    elif whose == "part":
        system = Refined(system)
    assert _copies(system, 3) == [system]
    assert len(_copies(Refined(Segmenter(tiny())), 3)) == 3


@pytest.mark.skipif(native.library("winograd") is None, reason="needs a C compiler")
def test_threads_give_their_memory_back() -> None:
    net = Net(f"{INPUT} {CONVOLUTION}", phase="TEST")
    x = torch.zeros(1, 32, 64, 64)

    def run() -> None:
        torch.set_num_threads(1)
        with torch.no_grad():
            net(x)

    def peak_after(count: int) -> int:
        for _ in range(count):
            thread = Thread(target=run)
            thread.start()
            thread.join()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = peak_after(4)
    assert peak_after(16) - before < 24 << 20  # 60 MB where nothing is freed


def test_a_failure_while_computing_comes_after_what_was_done(three_threads: None) -> None:
    segmenter = Segmenter(tiny())

    class Failing(Segmenter):
        batch = 1

        def compute(self, prepared: Sequence[np.ndarray]) -> list[Maps]:
            if prepared[0].shape[0] != 1:
                raise CaffeError("net", "no memory")
            return super().compute(prepared)

        def prepare(self, given: np.ndarray) -> np.ndarray:
            data = super().prepare(given)
            return np.concatenate([data, data]) if len(given) == 33 else data

    pictures, done = [picture(33 if i == 4 else 20, 20, i) for i in range(7)], list[int]()
    found = segment_all(Failing(segmenter.net), range(7), pictures.__getitem__, lambda i, *_: i, workers=2)
    with pytest.raises(CaffeError, match="no memory"):
        done.extend(found)
    assert done == [0, 1, 2, 3]
