"""The peers that run torch's ONNX export of the Hugging Face model: ONNX Runtime and plain OpenVINO."""

import contextlib
import logging
import os
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path

from scripts.benchmarks import hugging_face


class OnnxExport:
    """The Hugging Face model as ONNX, with the shapes of `batch`, written into `folder` when it is first asked for."""

    def __init__(self, model, batch, folder: Path):
        self.model, self.folder = model, folder
        self.name = f"export_{batch.batch_size}_{batch.sequence_length}"
        self.inputs = hugging_face.inputs_of(batch)

    def latency_peers(self) -> dict:
        """Name → a function that prepares the peer and returns a function that runs the batch once."""
        return {
            "ONNX Runtime, fp32": partial(self.onnxruntime_run, int8=False),
            "ONNX Runtime, dynamic int8": partial(self.onnxruntime_run, int8=True),
            "OpenVINO on the export, fp32": partial(self.openvino_run, "f32"),
            "OpenVINO on the export, bf16": partial(self.openvino_run, "bf16"),
        }

    @cached_property
    def path(self) -> Path:
        import torch

        class StartAndEnd(torch.nn.Module):
            def __init__(self, bert):
                super().__init__()
                self.bert = bert

            def forward(self, input_ids, attention_mask, token_type_ids):
                output = self.bert(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)
                return output.start_logits, output.end_logits

        path = self.folder / f"{self.name}.onnx"
        network, names, values = StartAndEnd(self.model).eval(), list(self.inputs), tuple(self.inputs.values())
        with torch.inference_mode(), _silence():
            torch.onnx.export(network, values, str(path), input_names=names, dynamo=True, verbose=False)
        return path

    @cached_property
    def int8_path(self) -> Path:
        """Its weights in int8, by output channel; activations are quantized while it runs."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        path = self.path.with_suffix(".int8.onnx")
        with _silence():
            quantize_dynamic(self.path, path, weight_type=QuantType.QInt8, per_channel=True)
        return path

    def onnxruntime_run(self, int8: bool) -> Callable:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = len(os.sched_getaffinity(0))
        options.log_severity_level = 3
        path = self.int8_path if int8 else self.path
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = {value.name for value in session.get_inputs()}
        inputs = {name: tensor.numpy() for name, tensor in self.inputs.items() if name in names}
        return lambda: session.run(None, inputs)

    def openvino_run(self, precision: str) -> Callable:
        import openvino

        settings = {"INFERENCE_PRECISION_HINT": precision, "PERFORMANCE_HINT": "LATENCY"}
        core = openvino.Core()
        request = core.compile_model(core.read_model(self.path), "CPU", settings).create_infer_request()
        for name, tensor in self.inputs.items():
            request.set_tensor(name, openvino.Tensor(tensor.numpy()))
        return request.infer


@contextlib.contextmanager
def _silence():
    """Keeps the exporters' progress reports off the table."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        logging.disable(before)
