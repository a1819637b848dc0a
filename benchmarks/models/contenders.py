"""The engines that the model benchmark compares, one small class each.

A contender makes its own file from the ONNX model once (`build`), loads it for a batch and a number of threads
(`prepare`) and runs it (`run`). Libraries are imported inside the classes: what is missing costs that contender only.
Every contender lives in a process of its own (worker.py), those of Larq and TFLite in an environment of their own.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from plain import Array, Plain, save_tensorflow, torch_module


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

    def plain(self) -> Plain:
        return Plain.load(self.onnx.with_suffix(".npz"))

    def _is_built(self) -> bool:
        return self.file.exists() and self.file.stat().st_mtime >= self.onnx.stat().st_mtime


class TacEngine(Contender):
    name = "tac_engine"
    package = "tac_engine"
    module = "tac_engine"
    backend: str | None = None
    suffix = ".tacbin"
    options: ClassVar[dict[str, str]] = {}

    def build(self) -> None:
        import tac_engine

        self.file = self.onnx.with_suffix(self.suffix)
        # A new installation converts anew: the converter may have changed.
        installed = Path(metadata.distribution(self.package).locate_file("tac_engine/__init__.py")).stat().st_ctime
        if not self._is_built() or self.file.stat().st_mtime < installed:
            tac_engine.convert(self.onnx, self.file, **self.options)

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


class TacEngineI16(TacEngine):
    """Float convolutions on rounded integers; what the file computes is held against the ONNX model by `verify`."""

    name = "tac_engine i16"
    check = "verify"
    suffix = ".i16.tacbin"
    options: ClassVar[dict[str, str]] = {"conv_precision": "i16"}

    def build(self) -> None:
        super().build()
        from tac_engine.converters.verify import verify

        report = verify(self.onnx, self.file, samples=2)
        if not report.ok:
            raise Unusable(str(report))


class TakesQdq(Contender):
    """Runs the QDQ file: static ranges, u8 activations, s8 weights per channel (s8 x s8 has no fast x86 kernel)."""

    check = "int8"

    def build(self) -> None:
        self.file = self.onnx.with_suffix(".int8.onnx")
        if not self._is_built():
            quantize(self.onnx, self.file)


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


class OnnxRuntimeInt8(TakesQdq, OnnxRuntime):
    name = "onnxruntime int8"


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


class OpenVinoInt8(TakesQdq, OpenVino):
    name = "openvino int8"


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
        self.network = self.plain()

    def prepare(self, batch: int, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        x = np.zeros((batch, *self.network.shape), np.float32)

        def run_in(layout: str) -> Callable[[Array], Array]:
            memory_format = getattr(torch, layout)
            module = torch_module(self.network).to(memory_format=memory_format).eval()
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
            folder = save_tensorflow(self.plain(), self.onnx.with_suffix(".saved_model"), larq=False)
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
            folder = save_tensorflow(self.plain(), self.onnx.with_suffix(".saved_model"), larq=True)
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
        self.forward, self.detail = fastest(ways, np.zeros((1, *self.plain().shape), np.float32))

    def run(self, x: Array) -> Array:
        return self.forward(x)


CONTENDERS: dict[str, type[Contender]] = {
    kind.name: kind
    for kind in (
        TacEngine,
        TacEngineAvx2,
        TacEngineI16,
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
    begin = time.perf_counter()
    for _ in range(6):
        for name, way in ways.items():
            start = time.perf_counter()
            way(x)
            best[name] = min(best[name], time.perf_counter() - start)
        if time.perf_counter() - begin > 2.0:
            break
    name = min(best, key=lambda key: best[key])
    return ways[name], name


def has_vnni() -> bool:
    """Say whether the CPU multiplies u8 by s8 exactly; without that, sums of two products saturate at 16 bits.

    Weights of 7 bits keep them below, which is what onnxruntime advises there.
    """
    return "vnni" in Path("/proc/cpuinfo").read_text()


def quantize(source: Path, target: Path) -> None:
    """Write the int8 form of an ONNX model, its ranges taken from eight pictures, and what it answers node by node."""
    import networks
    import onnxruntime
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Pictures(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            data = networks.pictures(8, networks.shape_of(source.stem), networks.SEED + 2)
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
        reduce_range=not has_vnni(),
    )
    folded.unlink()
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(target, options, providers=["CPUExecutionProvider"])
    pictures = np.load(source.with_suffix(".pictures.npy"))
    np.save(target.with_suffix(".npy"), np.concatenate([session.run(None, {"input": x[None]})[0] for x in pictures]))
