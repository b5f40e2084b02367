"""Pictures with boxes of objects from a database of AnnotatedDatum, sampled and transformed as SSD does.

Source: annotated_data_layer.cpp, data_reader.cpp, data_transformer.cpp of weiliu89/caffe, branch ssd.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError

from caffe_port.data.batches import Array, Batches, State
from caffe_port.data.databases import Records
from caffe_port.data.shard import ALL, Share
from caffe_port.data.ssd_boxes import Box, F, Group, clipped, emits, extrapolated, mirrored, moved, projected, resized
from caffe_port.data.ssd_sampling import Sampler
from caffe_port.data.ssd_transform import Item, SSDTransformer
from caffe_port.dialects import SSD
from caffe_port.errors import CaffeError, FormatError, ShapeError
from caffe_port.schema import schema_of

__all__ = ["AnnotatedBatches"]


class Annotated(NamedTuple):
    """A record. ``typed``: whether it has the type of its annotations (boxes are the only type)."""

    item: Item
    typed: bool
    groups: list[Group]


def _box(p: Any) -> Box:
    corners = (F(p.xmin), F(p.ymin), F(p.xmax), F(p.ymax))
    return Box(*corners, p.difficult, F(p.size) if p.HasField("size") else None)


class AnnotatedBatches(Batches):
    """Pictures (items, channels, height, width); and boxes (1, 1, count, 8), or labels (items, 1, 1, 1).

    A box is (item, label, instance, xmin, ymin, xmax, ymax, difficult); a batch without any has one, of -1.

    Args:
        typed: annotations are read also where the first record has none (``anno_type``).
        labelled: whether boxes or labels are wanted. Random numbers are drawn for both.
        flag: how encoded pictures are decoded. share: the part of the records that these batches are of.
    """

    transformer: SSDTransformer

    def __init__(
        self,
        path: str,
        records: Records,
        transformer: SSDTransformer,
        samplers: Sequence[Sampler],
        batch: int,
        *,
        typed: bool,
        labelled: bool,
        flag: int,
        share: Share = ALL,
    ) -> None:
        self._path, self._records, self.transformer, self._samplers = path, records, transformer, samplers
        self._batch, self._labelled, self._flag, self._share, self._offset = batch, labelled, flag, share, 0
        p = transformer.p
        self._varies = p.HasField("resize_param") and p.resize_param.resize_mode == p.resize_param.FIT_SMALL_SIZE
        first = self._read()
        self._typed = typed or first.typed
        boxes = (1, 1, max(sum(len(g.items) for g in first.groups), 1), 8)
        shape = transformer.made(first.item.shape, first.item.where)
        self.shapes = [(batch, *shape), boxes if self._typed else (batch, 1, 1, 1)]

    def _read(self) -> Annotated:
        """The current record."""
        where = f"{self._path}: record {self._records.key.decode(errors='backslashreplace')}"
        try:
            record = schema_of(SSD).AnnotatedDatum.FromString(self._records.value)
        except DecodeError as error:
            raise FormatError(where, "a record that is not an AnnotatedDatum") from error
        if not record.HasField("datum"):
            raise FormatError(
                where,
                "an AnnotatedDatum without a picture",
                expected="a database that SSD's convert_annoset made",
                remedy="records of Datum are read by the layer Data",
            )
        datum, content = record.datum, record.datum.data
        if not datum.encoded:
            numbers = np.frombuffer(content, np.uint8) if content else np.array(datum.float_data, np.float32)
            shape = datum.channels, datum.height, datum.width
            if numbers.size != np.prod(shape) or not numbers.size:
                expected = f"{'x'.join(map(str, shape))}, as it says"
                raise FormatError(where, f"a picture of {numbers.size} numbers", expected=expected)
            content = numbers.reshape(shape)
        label = datum.label if datum.HasField("label") else None
        groups = [
            Group(g.group_label, [(a.instance_id, _box(a.bbox)) for a in g.annotation]) for g in record.annotation_group
        ]
        item = Item(content, (datum.height, datum.width), label, where, self._flag)
        return Annotated(item, record.HasField("type"), groups)

    def make(self) -> tuple[Array, ...]:
        rows: list[list[Any]] = []
        labels = np.empty((self._batch, 1, 1, 1), np.float32)
        data = np.empty(0)
        for i in range(self._batch):
            while not self._share.keeps(self._offset):
                self._advance()
            record = self._read()
            if i == 0:
                shape = self.transformer.made(record.item.shape, record.item.where)
                data = np.empty((self._batch, *shape), np.float32)
            record = self._sampled(record)
            item = record.item
            shape = self.transformer.made(item.shape, item.where)
            if self._varies:
                data = np.empty((1, *shape), np.float32)
            elif shape != data.shape[1:]:
                raise ShapeError(
                    item.where,
                    f"a transformed picture of {'x'.join(map(str, shape))}",
                    expected=f"{'x'.join(map(str, data.shape[1:]))}, as the first of the batch",
                    remedy="a resize_param or crop makes all equal",
                )
            mirror, crop = self.transformer.data(item, data[i])
            if self._labelled and self._typed:
                if not record.typed:
                    raise FormatError(item.where, "a record without type", expected="type: BBOX, as in the first one")
                for label, items in self._changed(record, crop, resize=True, mirror=mirror):
                    rows += [[i, label, number, *box[:5]] for number, box in items]
            elif self._labelled:
                if item.label is None:
                    raise FormatError(item.where, "a record without a label", expected="one, or boxes and their type")
                labels[i] = item.label
            self._advance()
        if self._typed:
            labels = np.array(rows or [[-1] * 8], np.float32)[None, None]
        return data, labels

    def _sampled(self, record: Annotated) -> Annotated:
        """A record distorted, expanded, and cropped to a sampled box."""
        t = self.transformer
        record = record._replace(item=t.distorted(record.item))
        expanded = t.expanded(record.item)
        if expanded:
            item, box = expanded
            record = Annotated(item, True, self._changed(record, box))
        if self._samplers:
            objects = [box for group in record.groups for _, box in group.items]
            boxes = [box for sampler in self._samplers for box in sampler.boxes(objects, t.draws_from)]
            if boxes:
                box = boxes[t.draws_from.rand(len(boxes))]
                record = Annotated(t.cut(record.item, box), True, self._changed(record, clipped(box)))
        return record

    def _changed(self, record: Annotated, source: Box, *, resize: bool = False, mirror: bool = False) -> list[Group]:
        """The boxes after a picture is resized and cut to ``source`` (TransformAnnotation)."""
        p, item = self.transformer.p, record.item
        resize = resize and p.HasField("resize_param")
        if resize and record.groups and min(item.height, item.width) < 1:
            raise FormatError(item.where, f"a Datum of height {item.height} and width {item.width}", expected="above 0")

        def change(box: Box) -> Box | None:
            if resize:
                box = resized(p.resize_param, item.width, item.height, box)
            if p.HasField("emit_constraint") and not emits(p.emit_constraint, source, box):
                return None
            made = projected(source, box)
            if made is None:
                return None
            made = mirrored(made) if mirror else made
            return extrapolated(p.resize_param, item.width, item.height, source, made, item.where) if resize else made

        return moved(record.groups, change)

    def _advance(self) -> None:
        self._records.advance()
        self._offset += 1

    def position(self) -> State:
        t = self.transformer
        state = {"key": np.frombuffer(self._records.key, np.uint8), "offset": np.array([self._offset])}
        return state | ({"rand": t.rand.get_state()} if t.rand else {})

    def move(self, state: State) -> None:
        key, t = state["key"].tobytes(), self.transformer
        if ("rand" in state) != (t.rand is not None):
            raise CaffeError(
                "the data's position", "one of another distort_param", expected="the one it was saved with"
            )
        if not self._records.seek(key):
            found = f"{self._path} without the record {key!r}"
            raise CaffeError("the data's position", found, expected="the database as it was saved")
        (self._offset,) = state["offset"].tolist()
        if t.rand:
            t.rand.set_state(state["rand"])
