"""The public forks of Caffe to which names belong that this port lacks: layer types and Message.field.

Source: the forks' caffe.proto and layer sources. A name of several forks is listed under the first. Names in a
dialect of this port are found in :mod:`caffe_port.dialects`, before this table.
"""

from __future__ import annotations

from functools import cache

from caffe_port.dialects import DIALECTS

__all__ = ["fork_of"]

_FORKS = {
    "SSD (weiliu89/caffe, branch ssd)": """
        AnnotatedData DetectionEvaluate DetectionOutput MultiBoxLoss Normalize Permute PriorBox SmoothL1Loss
        VideoData LayerParameter.annotated_data_param LayerParameter.detection_evaluate_param
        LayerParameter.detection_output_param LayerParameter.multibox_loss_param LayerParameter.norm_param
        LayerParameter.permute_param LayerParameter.prior_box_param LayerParameter.video_data_param
        SolverParameter.ap_version SolverParameter.eval_type SolverParameter.plateau_winsize
        SolverParameter.show_per_class_result TransformationParameter.crop_h TransformationParameter.crop_w
        TransformationParameter.distort_param TransformationParameter.emit_constraint
        TransformationParameter.expand_param TransformationParameter.noise_param
        TransformationParameter.resize_param
    """,
    "SegNet (alexgkendall/caffe-segnet)": """
        DenseImageData Upsample DropoutParameter.sample_weights_test LayerParameter.dense_image_data_param
        LayerParameter.upsample_param LossParameter.class_weighting LossParameter.weight_by_label_freqs
    """,
    "DeepLab v2 (cdmh/deeplab-public-ver2)": """
        DenseCRF DomainTransform DomainTransformForwardOnly Interp MatRead MatWrite SegAccuracy SpatialProduct
        BatchNormParameter.update_global_stats BiasChannelParameter.background_label
        BiasChannelParameter.label_type LayerParameter.dense_crf_param LayerParameter.domain_transform_param
        LayerParameter.interp_param LayerParameter.mat_read_param LayerParameter.mat_write_param
        LayerParameter.seg_accuracy_param TransformationParameter.crop_height
        TransformationParameter.crop_width TransformationParameter.scale_factors
    """,
    "DeepLab (TheLegendAli/DeepLab-Context)": """
        CENSOR_LABEL CHANNEL_AGGREGATOR DOMINANT_CHANNEL GAIN_CHANNEL HISTOGRAM IGNORE_OVERLAY
        ONEHOT RELATIVE_ERROR LayerParameter.censor_label_param
        LayerParameter.channel_aggregator_param LayerParameter.dominant_channel_param
        LayerParameter.euclidean_loss_param LayerParameter.gain_channel_param LayerParameter.histogram_param
        LayerParameter.ignore_overlay_param LayerParameter.onehot_param
    """,
    "PSPNet (hszhao/PSPNet)": """
        BNParameter.bias_filler BNParameter.engine BNParameter.eps BNParameter.frozen BNParameter.momentum
        BNParameter.slope_filler
    """,
    "MS-CNN (zhaoweicai/mscnn)": """
        BboxAccuracy BoxOutput DecodeBBox DetectionAccuracy DetectionLoss ImageGtData ProposalTarget ROIAlign
        ROIPooling LayerParameter.bbox_reg_param LayerParameter.box_output_param
        LayerParameter.decode_bbox_param LayerParameter.detection_accuracy_param
        LayerParameter.detection_loss_param LayerParameter.image_gt_data_param
        LayerParameter.proposal_target_param LayerParameter.roi_pooling_param
        LayerParameter.smooth_l1_loss_param
    """,
    "TransferNet (maga33/TransferNet)": """
        BNFix ChannelSum FilterSum GradientScaler Gramian LinearSum SelectClsSrcTgkSegBinary
        SelectSegClsBinary SelectSrcTgkSegBinary SumSq VolumetricScale ImageDataParameter.target
        LayerParameter.gradient_scaler_param ScaleParameter.scale_factor SolverParameter.encoder_device_id
        SolverParameter.encoder_net
    """,
    "eric612/MobileNet-YOLO": """
        AssistedExcitation Axpy DepthwiseConvolution GaussianYolov3 LaneData ReLU6 RegionLoss Reorg
        SegmentationEvaluate YoloDetectionOutput YoloSeg Yolov3 Yolov3DetectionOutput
        LayerParameter.region_loss_param LayerParameter.relu6_param LayerParameter.reorg_param
        LayerParameter.segmentation_evaluate_param LayerParameter.yolo_detection_output_param
        LayerParameter.yolo_seg_param LayerParameter.yolov3_detection_output_param LayerParameter.yolov3_param
        SolverParameter.stageiter SolverParameter.stagelr TransformationParameter.apply_probability
        TransformationParameter.contrast_brightness_adjustment TransformationParameter.cvt_bgr2rgb
        TransformationParameter.debug_params TransformationParameter.enable_classf_aug
        TransformationParameter.max_brightness_shift TransformationParameter.max_color_shift
        TransformationParameter.max_contrast TransformationParameter.max_rotation_angle
        TransformationParameter.max_scaling_factor TransformationParameter.max_smooth
        TransformationParameter.min_contrast TransformationParameter.min_scaling_factor
        TransformationParameter.min_side TransformationParameter.min_side_max
        TransformationParameter.min_side_min TransformationParameter.smooth_filtering
    """,
    "SphereFace (wy1iu/sphereface)": """
        MarginInnerProduct LayerParameter.margin_inner_product_param
    """,
    "Center loss (ydwen/caffe-face)": """
        CenterLoss LayerParameter.center_loss_param
    """,
    "LRCN (LisaAnne/lisa-caffe-public)": """
        AccuracyParameter.denominator EltwiseParameter.coeff_blob ImageDataParameter.min_height
        ImageDataParameter.min_width TransformationParameter.flow
    """,
    "intel/caffe": """
        BoxAnnotatorOHEM BoxData EvalDetection MKLBatchNorm PSROIPooling SmoothL1LossOHEM SoftmaxWithLossOHEM
        SpatialDropout BatchNormParameter.bias_filler BatchNormParameter.bias_term BatchNormParameter.engine
        BatchNormParameter.filler BatchNormParameter.relu BatchNormParameter.stats_batch_size
        BatchNormParameter.use_weight_bias ConcatParameter.engine ConcatParameter.per_fla_fuse
        ConvolutionParameter.coeff ConvolutionParameter.conv_algorithm ConvolutionParameter.fusion_type
        ConvolutionParameter.negative_slope ConvolutionParameter.relu DataParameter.shuffle DataParameter.side
        EltwiseParameter.engine FillerParameter.scale InnerProductParameter.engine
        InnerProductParameter.negative_slope InnerProductParameter.relu
        LayerParameter.box_annotator_ohem_param LayerParameter.engine LayerParameter.eval_detection_param
        LayerParameter.mn_activation_param LayerParameter.mn_grad_compress_param LayerParameter.multinode
        LayerParameter.psroi_pooling_param LayerParameter.quantization_param
        LayerParameter.spatial_dropout_param LayerParameter.split_param LossParameter.label_smoothing
        LossParameter.pre_fixed_normalizer NetParameter.bn_stats_batch_size NetParameter.compile_net_state
        NetParameter.engine NetParameter.multinode PoolingParameter.avg_include_pad PoolingParameter.axis
        PoolingParameter.kernel_size_3d PoolingParameter.pad_3d PoolingParameter.stride_3d ReLUParameter.fuse
        ReshapeParameter.pixelshuffler SolverParameter.disabled_update SolverParameter.engine
        SolverParameter.local_gw_ratio SolverParameter.local_lr_auto SolverParameter.test_offset
        SolverParameter.warmup_iter SolverParameter.warmup_start_lr TransformationParameter.bgr2rgb
        TransformationParameter.pad TransformationParameter.random_aspect_ratio_param
        TransformationParameter.random_resize_param
    """,
    "NVIDIA/caffe": """
        DetectNetTransformation L1Loss BatchNormParameter.scale_bias BatchNormParameter.scale_filler
        ConvolutionParameter.conv_algos_override ConvolutionParameter.cudnn_convolution_algo_seeker
        DataParameter.cache DataParameter.parser_threads DataParameter.precache DataParameter.threads
        DropoutParameter.engine DropoutParameter.random_seed ELUParameter.lambda ImageDataParameter.cache
        ImageDataParameter.dataset_share_per_node ImageDataParameter.precache ImageDataParameter.short_side
        ImageDataParameter.threads LayerParameter.backward_math LayerParameter.backward_type
        LayerParameter.cudnn_math_override LayerParameter.debug LayerParameter.detectnet_augmentation_param
        LayerParameter.detectnet_groundtruth_param LayerParameter.forward_math LayerParameter.forward_type
        LayerParameter.trt_param NetParameter.default_backward_math NetParameter.default_backward_type
        NetParameter.default_conv_algos_override NetParameter.default_cudnn_math_override
        NetParameter.default_forward_math NetParameter.default_forward_type NetParameter.eltwise_mem_sharing
        NetParameter.global_grad_scale NetParameter.global_grad_scale_adaptive NetParameter.reduce_buckets
        PoolingParameter.torch_pooling SolverParameter.larc SolverParameter.larc_eta
        SolverParameter.larc_policy SolverParameter.larc_turbo SolverParameter.max_momentum
        SolverParameter.max_weight_decay SolverParameter.min_lr SolverParameter.momentum_policy
        SolverParameter.momentum_power SolverParameter.rampup_interval SolverParameter.rampup_lr
        SolverParameter.solver_data_type SolverParameter.store_blobs_in_old_format
        SolverParameter.test_and_snapshot_last_epochs SolverParameter.weight_decay_policy
        SolverParameter.weight_decay_power TransformationParameter.allow_upscale
        TransformationParameter.display TransformationParameter.forward_packing
        TransformationParameter.horizontal_stretch_lower TransformationParameter.horizontal_stretch_upper
        TransformationParameter.img_rand_resize_lower TransformationParameter.img_rand_resize_upper
        TransformationParameter.interpolation_algo_down TransformationParameter.interpolation_algo_up
        TransformationParameter.num_labels TransformationParameter.rand_resize_ratio_lower
        TransformationParameter.rand_resize_ratio_upper TransformationParameter.random_seed
        TransformationParameter.use_gpu_transform TransformationParameter.vertical_stretch_lower
        TransformationParameter.vertical_stretch_upper
    """,
    "Robert0812/deepsaldet": """
        LayerParameter.mcwindow_data_param LayerParameter.namcwindow_data_param WindowDataParameter.shuffle
    """,
    "pl8787/exp_caffe": """
        LayerParameter.colinear_convolution_param
    """,
}


@cache
def _owners() -> dict[str, str]:
    owners: dict[str, str] = {}
    for fork, words in _FORKS.items():
        for word in words.split():
            owners.setdefault(word, fork)
    return owners


def fork_of(name: str) -> str:
    """The fork that has a layer type (``PriorBox``) or field (``LayerParameter.norm_param``); "" if none is known.

    Where a dialect of this port has it, the text gives it: ``--dialect ssd``.
    """
    _, dot, field = name.rpartition(".")
    wanted = (f"field {field}", f".{field}") if dot else (f"type {name}", f"layers type {name}")
    for dialect in DIALECTS.values():
        if not dialect.fallback and any(m == wanted[0] or m.endswith(wanted[1]) for m in dialect.marks):
            return f"--dialect {dialect.name}"
    return _owners().get(name, "")
