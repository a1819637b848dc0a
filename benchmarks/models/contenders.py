"""The engines that the model benchmark compares, one small class each.

A contender says what it needs, makes its own file from the ONNX model once (`build`), loads it for a batch and a number of
threads (`prepare`) and runs it (`run`). Libraries are imported inside the classes, so that whatever is missing costs only
its own contender. Every contender lives in a process of its own (worker.py), Larq's in an environment of its own.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class Unusable(Exception):
    """Why a contender cannot take part."""


class Contender:
    """Base of all: `name` is what results are listed under, `check` how its answers are judged (bench_models.py)."""

    name = ""
    package = ""  # distribution whose version is reported
    module = ""
    check = "float32"
    environment = "main"
    batches = True  # False: takes one picture at a time
    loads_plainly = True  # False: `prepare` tries several ways, loading is not timed

    def __init__(self, folder: Path, network: str) -> None:
        start = time.perf_counter()
        importlib.import_module(self.module)
        self.import_ms = 1e3 * (time.perf_counter() - start)
        self.onnx = folder / f"{network}.onnx"
        self.file = self.onnx
        self.detail = ""  # what was chosen or found out

    @classmethod
    def version(cls) -> str:
        return metadata.version(cls.package)

    @classmethod
    def installed_bytes(cls) -> int:
        """Return the size of the package, without those that it depends on."""
        files = metadata.files(cls.package) or []
        return sum(Path(file.locate()).stat().st_size for file in files if Path(file.locate()).exists())

    def build(self) -> None:
        """Make `file` where it is not the ONNX model itself."""

    def prepare(self, batch: int, threads: int) -> None:
        """Load `file`."""
        raise NotImplementedError

    def run(self, x: Array) -> Array:
        """Return the logits of pictures [N, C, H, W] float32."""
        raise NotImplementedError

    def facts(self, batch: int) -> dict[str, Any]:
        """Return what the engine says of itself, for the results."""
        return {}

    def _is_built(self) -> bool:
        return self.file.exists() and self.file.stat().st_mtime >= self.onnx.stat().st_mtime


class TacEngine(Contender):
    name = "tac_engine"
    package = "tac_engine"
    module = "tac_engine"
    backend: str | None = None

    def build(self) -> None:
        import tac_engine

        self.file = self.onnx.with_suffix(".tacbin")
        # A new installation converts anew: the converter may have changed.
        installed = Path(metadata.distribution(self.package).locate_file("tac_engine/__init__.py")).stat().st_ctime
        if not self._is_built() or self.file.stat().st_mtime < installed:
            tac_engine.convert(self.onnx, self.file)

    def prepare(self, batch: int, threads: int) -> None:
        import tac_engine

        self.engine = tac_engine.load(self.file, threads=threads, backend=self.backend)
        self.detail = self.engine.backend

    def run(self, x: Array) -> Array:
        return np.asarray(self.engine.run(x))

    def facts(self, batch: int) -> dict[str, Any]:
        return {"peak_bytes": self.engine.peak_bytes(batch)}


class TacEngineAvx2(TacEngine):
    name = "tac_engine avx2"
    backend = "avx2"


class OnnxRuntime(Contender):
    name = "onnxruntime float32"
    package = "onnxruntime"
    module = "onnxruntime"

    def prepare(self, batch: int, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(self.file, options, providers=["CPUExecutionProvider"])

    def run(self, x: Array) -> Array:
        return np.asarray(self.session.run(None, {"input": x})[0])


class OnnxRuntimeInt8(OnnxRuntime):
    """QDQ, static ranges, u8 activations and s8 weights per channel: s8 activations have no fast kernel on x86."""

    name = "onnxruntime int8"
    check = "int8"

    def build(self) -> None:
        self.file = self.onnx.with_suffix(".int8.onnx")
        if not self._is_built():
            quantize(self.onnx, self.file)


class OpenVino(Contender):
    name = "openvino float32"
    package = "openvino"
    module = "openvino"

    def prepare(self, batch: int, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = self.read(core)
        model.reshape([batch, *list(model.input().get_partial_shape())[1:]])
        self.compiled = core.compile_model(
            model,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                "PERFORMANCE_HINT": "LATENCY",
                "INFERENCE_PRECISION_HINT": "f32",
                "ENABLE_CPU_PINNING": False,
            },
        )
        self.request = self.compiled.create_infer_request()

    def read(self, core: Any) -> Any:
        return core.read_model(self.file)

    def run(self, x: Array) -> Array:
        return np.asarray(next(iter(self.request.infer({0: x}, share_inputs=True, share_outputs=True).values())))


class OpenVinoInt8(OpenVino):
    """The file of OnnxRuntimeInt8."""

    name = "openvino int8"
    check = "int8"

    def build(self) -> None:
        self.file = self.onnx.with_suffix(".int8.onnx")
        if not self._is_built():
            quantize(self.onnx, self.file)


class OpenVinoBinary(OpenVino):
    """Signs become FakeQuantize of two levels, the one form in which OpenVINO takes a convolution for a binary one."""

    name = "openvino binary"

    def read(self, core: Any) -> Any:
        from openvino import opset13

        model = core.read_model(self.file)
        # Equal limits give wrong answers, and limits nearer than this do so behind some layers.
        low, high = (opset13.constant(np.float32(value)) for value in (-1e-6, 1e-6))
        minus, plus = (opset13.constant(np.float32(value)) for value in (-1, 1))
        self.signs = 0
        for op in model.get_ordered_ops():
            if op.get_type_name() == "Sign":
                levels = opset13.fake_quantize(op.input_value(0), low, high, minus, plus, 2)
                op.output(0).replace(levels.output(0))
                self.signs += 1
        model.validate_nodes_and_infer_types()
        return model

    def prepare(self, batch: int, threads: int) -> None:
        super().prepare(batch, threads)
        info = [op.get_rt_info() for op in self.compiled.get_runtime_model().get_ops()]
        kinds = [
            item["primitiveType"].astype(str) for item in info if item["layerType"].astype(str) == "BinaryConvolution"
        ]
        binary = [kind for kind in kinds if kind.endswith("u1")]
        self.detail = f"{len(binary)} of {self.signs} binary convolutions as {' '.join(sorted(set(binary)))}"
        if not binary:
            raise Unusable(f"none of {self.signs} convolutions became a binary one")


class Torch(Contender):
    """Traced, frozen and optimized; in the memory format that is faster for this network."""

    name = "torch float32"
    package = "torch"
    module = "torch"
    loads_plainly = False

    def build(self) -> None:
        import torch

        torch.set_grad_enabled(False)
        self.plain = _plain(self.onnx)

    def prepare(self, batch: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        x = np.zeros((batch, *self.plain.shape), np.float32)

        def run_in(layout: str) -> Callable[[Array], Array]:
            memory_format = getattr(torch, layout)
            module = _torch_module(self.plain).to(memory_format=memory_format).eval()
            example = torch.from_numpy(x).contiguous(memory_format=memory_format)
            frozen = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(module, example)))
            return lambda array: frozen(torch.from_numpy(array).contiguous(memory_format=memory_format)).numpy()

        self.forward, self.detail = fastest(
            {layout: run_in(layout) for layout in ("contiguous_format", "channels_last")}, x
        )

    def run(self, x: Array) -> Array:
        return np.asarray(self.forward(x))


class TfLite(Contender):
    name = "tflite xnnpack float32"
    package = "tensorflow"
    module = "tensorflow"
    environment = "larq"

    def build(self) -> None:
        import tensorflow as tf

        self.file = self.onnx.with_suffix(".tflite")
        if not self._is_built():
            folder = _save_tensorflow(_plain(self.onnx), self.onnx.with_suffix(".saved_model"))
            self.file.write_bytes(tf.lite.TFLiteConverter.from_saved_model(str(folder)).convert())

    def prepare(self, batch: int, threads: int) -> None:
        import tensorflow as tf

        self.interpreter = tf.lite.Interpreter(str(self.file), num_threads=threads)
        entry = self.interpreter.get_input_details()[0]
        self.interpreter.resize_tensor_input(entry["index"], [batch, *entry["shape"][1:]])
        self.interpreter.allocate_tensors()
        self.input, self.output = entry["index"], self.interpreter.get_output_details()[0]["index"]

    def run(self, x: Array) -> Array:
        self.interpreter.set_tensor(self.input, np.ascontiguousarray(x.transpose(0, 2, 3, 1)))
        self.interpreter.invoke()
        return np.asarray(self.interpreter.get_tensor(self.output))


class Larq(Contender):
    """Larq Compute Engine; in the one of its kernels that is faster for this network. It fixes the batch to 1."""

    name = "larq compute engine"
    package = "larq-compute-engine"
    module = "larq_compute_engine"
    environment = "larq"
    batches = False
    loads_plainly = False

    def build(self) -> None:
        import larq_compute_engine

        self.file = self.onnx.with_suffix(".lce.tflite")
        if not self._is_built():
            folder = _save_tensorflow(_plain(self.onnx), self.onnx.with_suffix(".saved_model"))
            self.file.write_bytes(larq_compute_engine.convert_saved_model(str(folder)))

    def prepare(self, batch: int, threads: int) -> None:
        from larq_compute_engine.tflite.python.interpreter import Interpreter

        model = self.file.read_bytes()
        if b"LceBconv2d" not in model:
            raise Unusable("no convolution became LceBconv2d")

        def run_with(indirect: bool) -> Callable[[Array], Array]:
            interpreter = Interpreter(model, num_threads=threads, use_indirect_bgemm=indirect, use_xnnpack=True)

            def forward(x: Array) -> Array:
                return np.asarray(interpreter.predict(np.ascontiguousarray(x.transpose(0, 2, 3, 1))))

            return forward

        ways = {"indirect bgemm": run_with(True), "bgemm": run_with(False)}
        self.forward, self.detail = fastest(ways, np.zeros((1, *_plain(self.onnx).shape), np.float32))

    def run(self, x: Array) -> Array:
        return self.forward(x)


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        TacEngine,
        TacEngineAvx2,
        OnnxRuntime,
        OnnxRuntimeInt8,
        OpenVino,
        OpenVinoInt8,
        OpenVinoBinary,
        Torch,
        TfLite,
        Larq,
    )
}


def fastest(ways: dict[str, Callable[[Array], Array]], x: Array) -> tuple[Callable[[Array], Array], str]:
    """Return the fastest of `ways` and its name, after a few runs of each in turn."""
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(4):
        for name, way in ways.items():
            start = time.perf_counter()
            way(x)
            best[name] = min(best[name], time.perf_counter() - start)
    name = min(best, key=lambda key: best[key])
    return ways[name], name


def quantize(source: Path, target: Path) -> None:
    """Write the int8 form of an ONNX model, its ranges taken from eight pictures, and what it answers node by node."""
    import networks
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            data = networks.pictures(8, _shape(source), networks.SEED + 2)
            self.batches = iter([{"input": data[i : i + 1]} for i in range(len(data))])

        def get_next(self) -> dict[str, Array] | None:
            return next(self.batches, None)

    folded = target.with_suffix(".folded.onnx")
    quant_pre_process(source, folded, skip_symbolic_shape=True)
    quantize_static(
        folded,
        target,
        Pictures(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
    )
    folded.unlink()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    pictures = np.load(source.with_suffix(".pictures.npy"))
    np.save(target.with_suffix(".npy"), np.concatenate([session.run(None, {"input": x[None]})[0] for x in pictures]))


# --- the networks for frameworks that read no ONNX ------------------------------------------------


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
        return cls(_shape(path), nodes, {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer})

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


def _plain(onnx_file: Path) -> Plain:
    return Plain.load(onnx_file.with_suffix(".npz"))


def _shape(onnx_file: Path) -> tuple[int, ...]:
    import networks

    return networks.shape_of(onnx_file.stem)


def _torch_module(plain: Plain) -> Any:
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
            raise Unusable(f"no torch form of {node['op']}")

    return Network()


def _save_tensorflow(plain: Plain, folder: Path) -> Path:
    """Write the network as a SavedModel with batch 1 and channels last."""
    import tensorflow as tf

    def pad(x: Any, pads: Sequence[int], value: float) -> Any:
        return tf.pad(x, [[0, 0], [pads[0], pads[2]], [pads[1], pads[3]], [0, 0]], constant_values=value)

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
                        result = tf.reshape(first, [1, -1])
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
                        raise Unusable(f"no TensorFlow form of {other}")
                values[node["output"]] = result
            return values["logits"]

    def conv(node: dict[str, Any], x: Any, unsigned: Any, weight: Array) -> Any:
        kernel, strides, name = weight.transpose(2, 3, 1, 0), node["strides"], padding(node)
        if node["group"] > 1:
            x = x if name == "SAME" else pad(x, node["pads"], 0.0)
            depthwise = weight.transpose(2, 3, 0, 1)
            return tf.nn.depthwise_conv2d(x, depthwise, [1, *strides, 1], name or "VALID")
        if name is not None:
            return tf.nn.conv2d(x, kernel, strides, name)
        if unsigned is None:
            return tf.nn.conv2d(pad(x, node["pads"], 0.0), kernel, strides, "VALID")
        # Zeros beside signs would be no signs: pad with +1 before the sign, then take away what that adds. Flattened, since the
        # converter would take a map beside the convolution for a bias.
        with tf.init_scope():  # now, not in the graph
            border = pad(np.zeros((1, *x.shape[1:]), np.float32), node["pads"], 1.0)
            added = tf.nn.conv2d(border, kernel, strides, "VALID").numpy()
        result = tf.nn.conv2d(sign(pad(unsigned, node["pads"], 1.0)), kernel, strides, "VALID")
        flat = [1, -1, added.shape[3]]
        return tf.reshape(tf.reshape(result, flat) - added.reshape(flat), added.shape)

    tf.saved_model.save(Module(), str(folder))
    return folder
