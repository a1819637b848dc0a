"""The networks of networks.py without ONNX, for engines that do not read it: as arrays, in torch, in TensorFlow."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Plain:
    """A network of networks.py as a list of nodes and arrays, in a file that numpy alone reads."""

    def __init__(self, shape: Sequence[int], nodes: list[dict[str, Any]], arrays: dict[str, Array]) -> None:
        self.shape = tuple(shape)
        self.nodes = nodes
        self.arrays = arrays

    @classmethod
    def of(cls, path: Path) -> Plain:
        import onnx

        graph = onnx.load(path).graph
        nodes = [
            {
                "op": node.op_type,
                "inputs": list(node.input),
                "output": node.output[0],
                **{item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
            }
            for node in graph.node
        ]
        shape = [axis.dim_value for axis in graph.input[0].type.tensor_type.shape.dim[1:]]
        return cls(shape, nodes, {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer})

    def save(self, path: Path) -> None:
        np.savez(path, graph=json.dumps({"shape": self.shape, "nodes": self.nodes}), **self.arrays)

    @classmethod
    def load(cls, path: Path) -> Plain:
        with np.load(path) as data:
            graph = json.loads(str(data["graph"]))
            return cls(graph["shape"], graph["nodes"], {name: data[name] for name in data.files if name != "graph"})

    def steps(self) -> Iterable[tuple[dict[str, Any], list[str], list[Array]]]:
        """Yield every node with its computed and its constant inputs."""
        for node in self.nodes:
            names = [name for name in node["inputs"] if name not in self.arrays]
            yield node, names, [self.arrays[name] for name in node["inputs"] if name in self.arrays]

    def affine(self, constants: Sequence[Array], epsilon: float) -> tuple[Array, Array]:
        """Return scale and shift of a BatchNormalization."""
        gamma, beta, mean, variance = constants
        scale = gamma / np.sqrt(variance + np.float32(epsilon))
        return scale, beta - mean * scale


def torch_module(plain: Plain) -> Any:
    import torch
    from torch.nn import functional

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            for name, array in plain.arrays.items():
                self.register_buffer(name.replace(".", "_"), torch.from_numpy(array.copy()))

        def forward(self, x: Any) -> Any:
            values = {"input": x}
            for node, names, _ in plain.steps():
                first, *others = (values[name] for name in names)
                constants = [getattr(self, name.replace(".", "_")) for name in node["inputs"] if name not in names]
                values[node["output"]] = self.step(node, first, others, constants)
            return values["logits"]

        def step(self, node: dict[str, Any], x: Any, others: list[Any], constants: list[Any]) -> Any:
            match node["op"]:
                case "Conv":
                    pads, strides = node["pads"][:2], node["strides"]
                    return functional.conv2d(x, constants[0], None, strides, pads, 1, node["group"])
                case "BatchNormalization":
                    gamma, beta, mean, variance = constants
                    return functional.batch_norm(x, mean, variance, gamma, beta, eps=node["epsilon"])
                case "MaxPool":
                    return functional.max_pool2d(x, node["kernel_shape"], node["strides"], node["pads"][:2])
                case "AveragePool":
                    return functional.avg_pool2d(x, node["kernel_shape"], node["strides"])
                case "GlobalAveragePool":
                    return functional.adaptive_avg_pool2d(x, 1)
                case "Gemm":
                    return functional.linear(x, *constants)
                case "Sign":
                    return torch.sign(x)
                case "Relu":
                    return functional.relu(x)
                case "Clip":
                    return functional.hardtanh(x)
                case "Flatten":
                    return torch.flatten(x, 1)
                case "Add":
                    return x + others[0]
            raise NotImplementedError(f"no torch form of {node['op']}")

    return Network()


def save_tensorflow(plain: Plain, folder: Path, *, larq: bool) -> Path:
    """Write the network as a SavedModel with batch 1 and channels last, for Larq's converter or TensorFlow's own."""
    import tensorflow as tf

    def pad(x: Any, pads: Sequence[int], value: float) -> Any:
        return tf.pad(x, [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], constant_values=value)

    def read_pads(node: dict[str, Any], x: Any) -> list[int]:
        """Return the pads without what no window reads, which Larq's converter takes for TensorFlow's SAME."""
        before, after = node["pads"][:2], []
        for size, kernel, stride, low, high in zip(
            x.shape[1:3], node["kernel_shape"], node["strides"], before, node["pads"][2:], strict=True
        ):
            after.append(high - (size + low + high - kernel) % stride)
        return [*before, *after]

    def padding(node: dict[str, Any]) -> str | None:
        """Return TensorFlow's own name of the node's padding, None if it has none for it."""
        if not any(node.get("pads", [0])):
            return "VALID"
        centred = node["strides"] == [1, 1] and node["pads"] == [size // 2 for size in node["kernel_shape"]] * 2
        return "SAME" if centred else None

    def sign(x: Any) -> Any:
        return tf.where(x >= 0, tf.ones_like(x), -tf.ones_like(x))

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec([1, *plain.shape[1:], plain.shape[0]], tf.float32)])
        def __call__(self, x: Any) -> Any:
            values = {"input": x}
            unsigned: dict[str, Any] = {}
            flattened: dict[str, tuple[int, ...]] = {}
            for node, names, constants in plain.steps():
                first, *others = (values[name] for name in names)
                match node["op"]:
                    case "Conv":
                        result = conv(node, first, unsigned.get(names[0]), constants[0])
                    case "BatchNormalization":
                        scale, shift = plain.affine(constants, node["epsilon"])
                        result = first * scale + shift
                    case "MaxPool":
                        name = padding(node)
                        padded = first if name else pad(first, node["pads"], float(np.finfo(np.float32).min))
                        result = tf.nn.max_pool2d(padded, node["kernel_shape"], node["strides"], name or "VALID")
                    case "AveragePool":
                        result = tf.nn.avg_pool2d(first, node["kernel_shape"], node["strides"], "VALID")
                    case "GlobalAveragePool":
                        result = tf.reduce_mean(first, [1, 2], keepdims=True)
                    case "Flatten":
                        flattened[node["output"]] = tuple(first.shape[1:])
                        result = tf.reshape(first, [-1, math.prod(first.shape[1:])])
                    case "Gemm":
                        weight, bias = constants
                        if names[0] in flattened:
                            height, width, channels = flattened[names[0]]
                            weight = weight.reshape(-1, channels, height, width).transpose(0, 2, 3, 1)
                        result = tf.matmul(first, weight.reshape(weight.shape[0], -1), transpose_b=True) + bias
                    case "Sign":
                        unsigned[node["output"]] = first
                        result = sign(first)
                    case "Relu":
                        result = tf.nn.relu(first)
                    case "Clip":
                        result = tf.clip_by_value(first, -1.0, 1.0)
                    case "Add":
                        result = first + others[0]
                    case other:
                        raise NotImplementedError(f"no TensorFlow form of {other}")
                values[node["output"]] = result
            return values["logits"]

    def conv(node: dict[str, Any], x: Any, unsigned: Any, weight: Array) -> Any:
        kernel, strides, name = weight.transpose(2, 3, 1, 0), node["strides"], padding(node)
        if node["group"] > 1:
            x = x if name == "SAME" else pad(x, read_pads(node, x), 0.0)
            depthwise = weight.transpose(2, 3, 0, 1)
            return tf.nn.depthwise_conv2d(x, depthwise, [1, *strides, 1], name or "VALID")
        if name is not None:
            return tf.nn.conv2d(x, kernel, strides, name)
        pads = read_pads(node, x)
        if unsigned is None or not larq:
            return tf.nn.conv2d(pad(x, pads, 0.0), kernel, strides, "VALID")
        # Zeros beside signs would be no signs: pad with +1 before the sign, then take away what that adds. Flattened,
        # since the converter would take a map beside the convolution for a bias.
        with tf.init_scope():  # now, not in the graph
            border = pad(np.zeros((1, *x.shape[1:]), np.float32), pads, 1.0)
            added = tf.nn.conv2d(border, kernel, strides, "VALID").numpy()
        result = tf.nn.conv2d(sign(pad(unsigned, pads, 1.0)), kernel, strides, "VALID")
        flat = [1, -1, added.shape[3]]
        return tf.reshape(tf.reshape(result, flat) - added.reshape(flat), added.shape)

    tf.saved_model.save(Module(), str(folder))
    return folder
