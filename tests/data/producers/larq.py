"""Larq and Keras through tf2onnx: NHWC networks, transposed into ONNX's NCHW by the exporter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # Larq is written for Keras 2
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import larq as lq
import numpy as np
import tensorflow as tf
import tf2onnx

from . import Recorded, register, samples

layers = tf.keras.layers


def randomise(net: tf.keras.Model, seed: int) -> None:
    """Latent weights, BatchNorm statistics and gammas of both signs as after training."""
    generator = np.random.default_rng(seed)
    for layer in net.layers:
        weights = layer.get_weights()
        if isinstance(layer, layers.BatchNormalization):
            size = weights[-1].shape
            gamma = [generator.standard_normal(size)] if layer.scale else []
            beta = [generator.standard_normal(size)] if layer.center else []
            weights = [*gamma, *beta, 3 * generator.standard_normal(size), generator.uniform(20, 30, size)]
        else:
            weights = [0.3 * generator.standard_normal(value.shape) for value in weights]
        layer.set_weights(weights)


def record(
    net: tf.keras.Model, path: Path, *, count: int = 4, step: float = 0.0, batch: int | None = None, opset: int = 13
) -> Recorded:
    randomise(net, seed=3)
    shape = net.input_shape[1:]
    signature = [tf.TensorSpec((batch, *shape), tf.float32, name="x")]
    tf2onnx.convert.from_keras(net, input_signature=signature, opset=opset, output_path=str(path))
    x = samples(count, *shape, seed=7, step=step)
    return Recorded([x], [net(x, training=False).numpy()])


def add(name: str, make: Callable[[], tf.keras.Model], **options: Any) -> None:
    register("larq", name, lambda path: record(make(), path, **options))


def conv(x: Any, filters: int, size: int = 3, **options: Any) -> Any:
    """A binary convolution as QuickNet has it: padded with +1."""
    quantizers = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign"}
    options = {**quantizers, "padding": "same", "pad_values": 1.0, "use_bias": False, **options}
    return lq.layers.QuantConv2D(filters, size, **options)(x)


def norm(x: Any, **options: Any) -> Any:
    return layers.BatchNormalization(**options)(x)


def model(build: Callable[[Any], Any], shape: tuple[int, ...]) -> Callable[[], tf.keras.Model]:
    def make() -> tf.keras.Model:
        tf.keras.utils.set_random_seed(0)
        x = layers.Input(shape)
        return tf.keras.Model(x, build(x))

    return make


def binarynet(x: Any) -> Any:
    """Larq's BinaryNet: binary weights on a real image, everything else binary, features flattened in NHWC order."""
    dense = {"input_quantizer": "ste_sign", "kernel_quantizer": "ste_sign", "use_bias": False}
    x = norm(conv(x, 8, input_quantizer=None, padding="valid", pad_values=0.0), scale=False)
    x = norm(layers.MaxPool2D(2)(conv(x, 8)), scale=False)
    x = layers.Flatten()(x)
    x = norm(lq.layers.QuantDense(16, **dense)(x), scale=False)
    x = norm(lq.layers.QuantDense(5, **dense)(x), scale=False)
    return layers.Activation("softmax")(x)


add("binarynet", model(binarynet, (10, 10, 3)))
add("binarynet_batch_1", model(binarynet, (10, 10, 3)), batch=1)
add("binarynet_opset_18", model(binarynet, (10, 10, 3)), opset=18)


def quantizers(activation: Any, kernel: Any) -> Callable[[Any], Any]:
    """The quantizer on an image and behind a BatchNorm, padded with 0; strided once."""
    options = {"input_quantizer": activation, "kernel_quantizer": kernel, "pad_values": 0.0}

    def build(x: Any) -> Any:
        x = norm(conv(x, 8, **options))
        x = norm(conv(x, 8, strides=2, **options))
        return layers.Dense(5)(layers.Flatten()(layers.Activation("relu")(x)))

    return build


for name, activation, kernel in (
    ("ste_sign", "ste_sign", "ste_sign"),
    ("approx_sign", "approx_sign", "ste_sign"),
    ("swish_sign", "swish_sign", "ste_sign"),
    ("heaviside", "ste_heaviside", "ste_sign"),
    (
        "ste_tern",
        lambda: lq.quantizers.SteTern(threshold_value=0.4),
        lambda: lq.quantizers.SteTern(threshold_value=0.2),
    ),
    ("ste_tern_weights", "ste_sign", lambda: lq.quantizers.SteTern(threshold_value=0.2)),
    ("magnitude_aware_sign", "ste_sign", "magnitude_aware_sign"),
    ("dorefa", lambda: lq.quantizers.DoReFa(2), lambda: lq.quantizers.DoReFa(2, mode="weights")),
    ("dorefa_binary_weights", lambda: lq.quantizers.DoReFa(2), "ste_sign"),
):

    def build(x: Any, activation: Any = activation, kernel: Any = kernel) -> Any:
        made = [item if isinstance(item, str) else item() for item in (activation, kernel)]
        return quantizers(*made)(x)

    add(f"quantizer_{name}", model(build, (8, 8, 4)), step=0.25)


def padding(pad_values: float, strides: int, size: int) -> Callable[[Any], Any]:
    def build(x: Any) -> Any:
        x = norm(conv(x, 6, size, pad_values=pad_values, strides=strides))
        return conv(x, 4, size, pad_values=pad_values, strides=strides)

    return build


for pad_values in (0.0, 1.0, -1.0):
    text = {0.0: "zero", 1.0: "plus_one", -1.0: "minus_one"}[pad_values]
    add(f"pad_{text}", model(padding(pad_values, 1, 3), (8, 8, 4)), step=0.25)
    # An even size and stride 2: one side is padded more than the other.
    add(f"pad_{text}_stride_2", model(padding(pad_values, 2, 3), (8, 8, 4)), step=0.25)


def quicknet(x: Any) -> Any:
    """Residual binary convolutions with ReLU in front of BatchNorm; transitions by MaxPool, a blur and 1x1."""

    def residual(x: Any) -> Any:
        return layers.add([x, norm(conv(x, x.shape[-1], activation="relu"))])

    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Activation("relu")(norm(x))
    x = layers.DepthwiseConv2D(3, padding="same", strides=2, use_bias=False)(x)
    x = norm(layers.Conv2D(8, 1, use_bias=False)(norm(x, scale=False, center=False)))
    x = residual(residual(x))
    x = layers.MaxPool2D(2, strides=1)(layers.Activation("relu")(x))
    x = layers.DepthwiseConv2D(3, padding="same", strides=2, use_bias=False)(x)
    x = residual(norm(layers.Conv2D(12, 1, use_bias=False)(x)))
    x = layers.GlobalAveragePooling2D()(layers.Activation("relu")(x))
    return layers.Activation("softmax")(layers.Dense(5)(x))


add("quicknet", model(quicknet, (32, 32, 3)))


def dense_block(x: Any, growth: int, dilation: int = 1) -> Any:
    y = conv(norm(x), growth, pad_values=0.0, dilation_rate=dilation)
    return layers.concatenate([x, y])


def binary_densenet(x: Any) -> Any:
    x = layers.Conv2D(8, 3, padding="same", use_bias=False)(x)
    x = dense_block(dense_block(x, 4), 4, dilation=2)
    x = layers.Activation("relu")(layers.MaxPool2D(2)(norm(x)))
    x = dense_block(layers.Conv2D(8, 1, use_bias=False)(x), 4)
    x = layers.Activation("relu")(norm(x))
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


add("binary_densenet", model(binary_densenet, (12, 12, 3)))


def meliusnet(x: Any) -> Any:
    """Dense blocks, then improvement blocks that add to the newest channels; a grouped stem of split convolutions."""

    def improve(x: Any, growth: int) -> Any:
        y = conv(norm(x), growth, pad_values=0.0)
        old = x.shape[-1] - growth
        return layers.Lambda(lambda pair: pair[0] + tf.pad(pair[1], [[0, 0], [0, 0], [0, 0], [old, 0]]))([x, y])

    x = layers.Activation("relu")(norm(layers.Conv2D(8, 3, strides=2, padding="same", use_bias=False)(x)))
    halves = layers.Lambda(lambda value: tf.split(value, 2, axis=-1))(x)
    x = layers.concatenate([layers.Conv2D(4, 3, padding="same", use_bias=False)(half) for half in halves])
    x = layers.MaxPool2D(2, strides=2, padding="same")(layers.Activation("relu")(norm(x)))
    x = improve(dense_block(x, 4), 4)
    x = layers.Activation("relu")(layers.MaxPool2D(2, strides=2, padding="same")(norm(x)))
    x = improve(dense_block(layers.Conv2D(8, 1, use_bias=False)(x), 4), 4)
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(layers.Activation("relu")(norm(x))))


add("meliusnet", model(meliusnet, (26, 26, 3)))


def real_to_binary(x: Any) -> Any:
    """A gate computed from the block's real input scales the channels of the binary convolution."""

    def block(x: Any) -> Any:
        channels = x.shape[-1]
        gate = layers.GlobalAveragePooling2D()(x)
        gate = layers.Dense(2, activation="relu")(gate)
        gate = layers.Reshape((1, 1, channels))(layers.Dense(channels, activation="sigmoid")(gate))
        y = conv(norm(x), channels, pad_values=0.0)
        y = layers.PReLU(shared_axes=[1, 2])(layers.multiply([y, gate]))
        return layers.add([x, y])

    x = layers.Conv2D(8, 3, padding="same")(x)
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(block(block(x))))


add("real_to_binary", model(real_to_binary, (8, 8, 3)))


def bireal(x: Any) -> Any:
    """Bi-Real with magnitude-aware kernels; a strided block has an average pool and a 1x1 convolution as shortcut."""

    def block(x: Any, filters: int, strides: int) -> Any:
        quantizers = {"input_quantizer": "approx_sign", "kernel_quantizer": "magnitude_aware_sign"}
        y = norm(conv(x, filters, strides=strides, pad_values=0.0, **quantizers))
        if strides == 2:
            x = norm(layers.Conv2D(filters, 1, use_bias=False)(layers.AvgPool2D(2, strides=2)(x)))
        return layers.add([x, y])

    x = layers.MaxPool2D(3, strides=2, padding="same")(norm(layers.Conv2D(6, 3, padding="same", use_bias=False)(x)))
    x = block(block(block(x, 6, 1), 8, 2), 8, 1)
    return layers.Dense(5)(layers.GlobalAveragePooling2D()(x))


add("bireal", model(bireal, (16, 16, 3)))


def xnornet(x: Any) -> Any:
    """BatchNorm in front of the sign, ReLU behind the convolution, fully connected layers binary but the last."""
    x = layers.Activation("relu")(norm(layers.Conv2D(6, 5, padding="same", use_bias=False)(x), scale=False))
    x = layers.MaxPool2D(3, strides=2)(x)
    x = layers.Activation("relu")(conv(norm(x), 8, 5, pad_values=0.0, kernel_quantizer="magnitude_aware_sign"))
    x = layers.Flatten()(layers.MaxPool2D(2)(x))
    x = lq.layers.QuantDense(16, input_quantizer="ste_sign", kernel_quantizer="ste_sign", use_bias=False)(norm(x))
    return layers.Dense(5)(layers.Activation("relu")(norm(x)))


add("xnornet", model(xnornet, (12, 12, 3)))


def depthwise(x: Any) -> Any:
    """Depthwise and separable binary layers, and Keras's own Conv2D behind a quantizer layer."""
    options = {"input_quantizer": "ste_sign", "depthwise_quantizer": "ste_sign", "padding": "same", "pad_values": 1.0}
    x = norm(lq.layers.QuantDepthwiseConv2D(3, use_bias=False, **options)(x))
    x = norm(lq.layers.QuantSeparableConv2D(6, 3, pointwise_quantizer="ste_sign", use_bias=False, **options)(x))
    x = layers.Conv2D(4, 3, use_bias=False)(lq.quantizers.SteSign()(x))
    return layers.GlobalMaxPool2D()(x)


add("depthwise", model(depthwise, (8, 8, 4)), step=0.25)
