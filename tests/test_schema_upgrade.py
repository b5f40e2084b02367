"""Every generation becomes the newest form, as upgrade_proto.cpp makes it."""

from __future__ import annotations

import logging

import pytest

from caffe_port.errors import DefinitionError
from caffe_port.schema import SCHEMA, V1_TO_V2, V2_TO_V1, parse_text, read_net, read_solver, upgrade_net
from caffe_port.schema.layer_types import V0_TO_V1, v2_type


def net(text: str):
    return parse_text(text, SCHEMA.NetParameter, "expected")


# what is given, what Caffe makes of it
UPGRADES = {
    "v1 layer": (
        """layers { name: "c" type: CONVOLUTION bottom: "x" top: "y" include { phase: TRAIN } loss_weight: 2
           convolution_param { num_output: 5 pad: 1 } }""",
        """layer { name: "c" type: "Convolution" bottom: "x" top: "y" include { phase: TRAIN } loss_weight: 2
           convolution_param { num_output: 5 pad: 1 } }""",
    ),
    "v1 rates": (
        "layers { blobs_lr: 1 blobs_lr: 2 weight_decay: 0.5 }",
        "layer { param { lr_mult: 1 decay_mult: 0.5 } param { lr_mult: 2 } }",
    ),
    "v1 shared parameters": (
        'layers { param: "w" param: "b" blob_share_mode: PERMISSIVE weight_decay: [1, 0, 3] }',
        """layer { param { name: "w" share_mode: PERMISSIVE decay_mult: 1 } param { name: "b" decay_mult: 0 }
           param { decay_mult: 3 } }""",
    ),
    "v1 without a type": ('layers { name: "a" }', 'layer { name: "a" }'),
    "v1 type NONE": ("layers { type: NONE }", 'layer { type: "" }'),
    "v1 blobs": ("layers { type: BN blobs { num: 1 data: 2 } }", 'layer { type: "BN" blobs { num: 1 data: 2 } }'),
    "fork's layers": (
        """layers { type: UNPOOLING unpooling_param { unpool_size: 4 } }
           layers { type: BN bn_param { bn_mode: INFERENCE } }
           layers { type: RED_SOFTMAX_LOSS red_softmax_loss_param { class_num: 3 } }""",
        """layer { type: "Unpooling" unpooling_param { unpool_size: 4 } }
           layer { type: "BN" bn_param { bn_mode: INFERENCE } }
           layer { type: "RedSoftmaxWithLoss" red_softmax_loss_param { class_num: 3 } }""",
    ),
    "data transformations": (
        """layers { type: DATA data_param { source: "s" scale: 0.5 mirror: false crop_size: 7 } }
           layers { type: IMAGE_DATA image_data_param { mean_file: "m" } transform_param { scale: 2 } }
           layers { type: WINDOW_DATA window_data_param { mirror: true crop_mode: "square" } }
           layers { type: WINDOW_SEG_DATA image_data_param { scale: 3 } }""",
        """layer { type: "Data" data_param { source: "s" } transform_param { scale: 0.5 mirror: false crop_size: 7 } }
           layer { type: "ImageData" image_data_param { } transform_param { mean_file: "m" scale: 2 } }
           layer { type: "WindowData" window_data_param { crop_mode: "square" } transform_param { mirror: true } }
           layer { type: "WindowSegData" image_data_param { scale: 3 } }""",
    ),
    "v2 data is left alone": (
        'layer { type: "Data" data_param { scale: 0.5 } }',
        'layer { type: "Data" data_param { scale: 0.5 } }',
    ),
    "input_dim": (
        'input: "a" input: "b" input_dim: [2, 3, 5, 7, 1, 4, 6, 8] layers { type: RELU bottom: "b" }',
        """layer { name: "input" type: "Input" top: "a" top: "b"
           input_param { shape { dim: [2, 3, 5, 7] } shape { dim: [1, 4, 6, 8] } } }
           layer { type: "ReLU" bottom: "b" }""",
    ),
    "input_shape rules over input_dim": (
        'input: "a" input_shape { dim: [2, 3] } input_dim: 9 layer { type: "ReLU" }',
        """layer { name: "input" type: "Input" top: "a" input_param { shape { dim: [2, 3] } } }
           layer { type: "ReLU" }""",
    ),
    "inputs of weight files": ('name: "n" input: "a" layers { name: "c" }', 'name: "n" layer { name: "c" }'),
    "three rates of BatchNorm": (
        'layer { type: "BatchNorm" param { lr_mult: 1 name: "m" } param { decay_mult: 2 } param { } }',
        """layer { type: "BatchNorm" param { name: "m" lr_mult: 0 decay_mult: 0 } param { lr_mult: 0 decay_mult: 0 }
           param { lr_mult: 0 decay_mult: 0 } }""",
    ),
    "two rates of BatchNorm": (
        'layer { type: "BatchNorm" param { lr_mult: 1 } param { } }',
        'layer { type: "BatchNorm" param { lr_mult: 1 } param { } }',
    ),
    "net's own fields": (
        'name: "n" force_backward: true debug_info: true state { level: 2 } layers { }',
        'name: "n" force_backward: true debug_info: true state { level: 2 } layer { }',
    ),
    "v0 net": (
        """name: "v0" input: "data" input_dim: [1, 3, 9, 9] force_backward: true
           layers { layer { name: "c" type: "conv" num_output: 4 kernelsize: 3 stride: 2 pad: 1 group: 2 biasterm: false
               weight_filler { type: "gaussian" std: 0.5 } bias_filler { value: 1 } blobs_lr: 1 weight_decay: 0 }
             bottom: "data" top: "c" }
           layers { layer { name: "p" type: "pool" kernelsize: 2 stride: 3 pad: 1 pool: AVE } bottom: "c" top: "p" }
           layers { layer { name: "n" type: "lrn" local_size: 3 alpha: 0.1 beta: 0.2 k: 2 } bottom: "p" top: "n" }
           layers { layer { name: "i" type: "innerproduct" num_output: 6 } bottom: "n" top: "i" }
           layers { layer { name: "d" type: "dropout" dropout_ratio: 0.2 } bottom: "i" top: "i" }""",
        """name: "v0" force_backward: true
           layer { name: "input" type: "Input" top: "data" input_param { shape { dim: [1, 3, 9, 9] } } }
           layer { name: "c" type: "Convolution" bottom: "data" top: "c" param { lr_mult: 1 decay_mult: 0 }
             convolution_param { num_output: 4 kernel_size: 3 stride: 2 pad: 1 group: 2 bias_term: false
               weight_filler { type: "gaussian" std: 0.5 } bias_filler { value: 1 } } }
           layer { name: "p" type: "Pooling" bottom: "c" top: "p"
             pooling_param { kernel_size: 2 stride: 3 pad: 1 pool: AVE } }
           layer { name: "n" type: "LRN" bottom: "p" top: "n" lrn_param { local_size: 3 alpha: 0.1 beta: 0.2 k: 2 } }
           layer { name: "i" type: "InnerProduct" bottom: "n" top: "i" inner_product_param { num_output: 6 } }
           layer { name: "d" type: "Dropout" bottom: "i" top: "i" dropout_param { dropout_ratio: 0.2 } }""",
    ),
    "v0 data": (
        """layers { layer { type: "data" source: "s" batchsize: 4 scale: 0.5 meanfile: "m" cropsize: 7 mirror: true
             rand_skip: 2 } }
           layers { layer { type: "images" source: "s" batchsize: 4 shuffle_images: true new_height: 8 new_width: 9 } }
           layers { layer { type: "window_data" source: "s" det_fg_threshold: 0.6 det_bg_threshold: 0.4
             det_fg_fraction: 0.3 det_context_pad: 2 det_crop_mode: "square" } }
           layers { layer { type: "hdf5_data" source: "s" batchsize: 4 } }
           layers { layer { type: "hdf5_output" hdf5_output_param { file_name: "f" } } }
           layers { layer { type: "infogain_loss" source: "s" } }
           layers { layer { type: "concat" concat_dim: 0 } }""",
        """layer { type: "Data" data_param { source: "s" batch_size: 4 rand_skip: 2 }
             transform_param { scale: 0.5 mean_file: "m" crop_size: 7 mirror: true } }
           layer { type: "ImageData" image_data_param { source: "s" batch_size: 4 shuffle: true new_height: 8
             new_width: 9 } }
           layer { type: "WindowData" window_data_param { source: "s" fg_threshold: 0.6 bg_threshold: 0.4
             fg_fraction: 0.3 context_pad: 2 crop_mode: "square" } }
           layer { type: "HDF5Data" hdf5_data_param { source: "s" batch_size: 4 } }
           layer { type: "HDF5Output" hdf5_output_param { file_name: "f" } }
           layer { type: "InfogainLoss" infogain_loss_param { source: "s" } }
           layer { type: "Concat" concat_param { concat_dim: 0 } }""",
    ),
    "v0 padding": (
        """input: "x" input_dim: [1, 1, 4, 4]
           layers { layer { name: "pad1" type: "padding" pad: 2 } bottom: "x" top: "xp" }
           layers { layer { name: "c" type: "conv" num_output: 1 kernelsize: 5 } bottom: "xp" top: "y" }
           layers { layer { name: "pad2" type: "padding" pad: 3 } bottom: "y" top: "y" }
           layers { layer { name: "p" type: "pool" } bottom: "y" top: "z" }""",
        """layer { name: "input" type: "Input" top: "x" input_param { shape { dim: [1, 1, 4, 4] } } }
           layer { name: "c" type: "Convolution" bottom: "x" top: "y"
             convolution_param { num_output: 1 kernel_size: 5 pad: 2 } }
           layer { name: "p" type: "Pooling" bottom: "y" top: "z" pooling_param { pad: 3 } }""",
    ),
}


@pytest.mark.parametrize("name", UPGRADES)
def test_upgrade(name):
    old, new = map(net, UPGRADES[name])
    before = old.SerializeToString()
    upgraded = upgrade_net(old)
    assert upgraded.net == new
    assert old.SerializeToString() == before, "the source has changed"
    assert len(upgraded.origins) == len(new.layer)
    assert upgrade_net(new).net == new


@pytest.mark.parametrize(
    ("name", "generation", "origins"),
    [
        ("v1 layer", 1, (0,)),
        ("input_dim", 1, (-1, 0)),
        ("input_shape rules over input_dim", 2, (-1, 0)),
        ("v0 padding", 0, (-1, 1, 3)),
    ],
)
def test_where_layers_come_from(name, generation, origins):
    upgraded = upgrade_net(net(UPGRADES[name][0]))
    assert (upgraded.generation, upgraded.origins) == (generation, origins)


def test_weight_files_are_upgraded_too():
    weights = net(UPGRADES["v1 rates"][0])
    weights.layers[0].blobs.add(num=1, channels=1, height=1, width=3, data=[1, 2, 3])
    upgraded = upgrade_net(SCHEMA.NetParameter.FromString(weights.SerializeToString())).net
    assert list(upgraded.layer[0].blobs[0].data) == [1, 2, 3]
    assert read_net(weights).generation == 1


@pytest.mark.parametrize("v1", SCHEMA.V1LayerParameter.LayerType.keys())
def test_every_v1_type_has_a_v2_name(v1):
    assert v1 in V1_TO_V2
    assert v1 == "NONE" or V2_TO_V1[V1_TO_V2[v1]] == v1


def test_v0_types_are_v1_types():
    assert set(V0_TO_V1.values()) <= set(V1_TO_V2)


def test_types_of_other_forks_become_camel_case():
    assert [v2_type(name) for name in ("INTERP", "BN_DATA", "RELU")] == ["Interp", "BnData", "ReLU"]


def test_v0_parameters_without_use_are_logged(caplog):
    with caplog.at_level(logging.WARNING):
        new = upgrade_net(net('layers { layer { name: "r" type: "relu" num_output: 3 new_num: 2 } }')).net
    assert new == net('layer { name: "r" type: "ReLU" }')
    assert [r.getMessage() for r in caplog.records] == [
        f"layer 0: a layer of type relu has no {field}; dropped" for field in ("num_output", "new_num")
    ]


# what Caffe refuses, or would drop without a word
REFUSED = {
    "both generations": ('layer { name: "a" }\nlayers { name: "b" }', ":2: layer b: expected one generation in a file"),
    "v1 among v0": (
        'layers { layer { type: "relu" } }\nlayers { name: "b" type: RELU }',
        ":2: layer b: expected one generation in a file, found name beside",
    ),
    "v2 among v0": ('layers { layer { name: "a" type: "relu" } } layer { }', ":1: layer a: expected one generation"),
    "unknown v0 type": ('layers { layer { name: "a" type: "conf" } }', ":1: layer a: unknown layer type 'conf'"),
    "no v0 type": ('layers { layer { name: "a" } }', ":1: layer a: unknown layer type ''"),
    "v0 bottom": (
        'input: "data"\nlayers { layer { name: "a" type: "relu" } bottom: "date" }',
        ":2: layer a: bottom 'date', which no earlier layer computes; did you mean data?",
    ),
    "padding of no convolution": (
        """input: "x"
           layers { layer { type: "padding" } bottom: "x" top: "y" }
           layers { layer { name: "r" type: "relu" } bottom: "y" }""",
        ":3: layer r: expected conv or pool, found a padding layer's top read by type 'relu'",
    ),
    "padding of two bottoms": (
        """input: "x" layers { layer { type: "padding" } bottom: "x" top: "y" }
           layers { layer { name: "c" type: "conv" } bottom: "y" bottom: "x" }""",
        ":2: layer c: expected one, found several bottoms or tops",
    ),
    "too few input_dim": ('\ninput: "x" input_dim: [1, 2]', ":2: expected 4 for each, found 2 input_dim for 1 inputs"),
    "too few input_shape": (
        'input: "x" input: "y" input_shape { }',
        ":1: expected 1 for each, found 1 input_shape for 2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    text, says = REFUSED[name]
    with pytest.raises(DefinitionError) as error:
        read_net(text)
    assert str(error.value).startswith(f"<text>{says}"), str(error.value)


@pytest.mark.parametrize(
    ("enum", "name"),
    [
        ("SGD", "SGD"),
        ("NESTEROV", "Nesterov"),
        ("ADAGRAD", "AdaGrad"),
        ("RMSPROP", "RMSProp"),
        ("ADADELTA", "AdaDelta"),
        ("ADAM", "Adam"),
    ],
)
def test_solver_type(enum, name):
    solver = read_solver(f"solver_type: {enum}\n")
    assert solver == parse_text(f'type: "{name}"', SCHEMA.SolverParameter, "expected")


def test_solver_of_two_types():
    with pytest.raises(DefinitionError, match="solver_type and type"):
        read_solver('solver_type: SGD\ntype: "Adam"')


def test_snapshot_prefix_comes_from_the_file(tmp_path):
    path = tmp_path / "my.solver.prototxt"
    for given, prefix in [
        ("", tmp_path / "my.solver"),
        (f'snapshot_prefix: "{tmp_path}"', tmp_path / "my.solver"),
        ('snapshot_prefix: "elsewhere/x"', "elsewhere/x"),
    ]:
        path.write_text(f"base_lr: 1 {given}")
        assert read_solver(path).snapshot_prefix == str(prefix)
    assert not read_solver("base_lr: 1\n").HasField("snapshot_prefix")
