"""Which engines demoBERT's grid has, from which checkpoints, built with which flags."""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FINE_TUNED = ROOT / "models" / "fine-tuned"
BUNDLED = ROOT / "models" / "bundled" / "bert_mini_squad11"
QAT = FINE_TUNED / "bert_pyt_onnx_large_qa_squad11_amp_fake_quant_v1" / "bert_large_v1_1_fake_quant.onnx"
MEGATRON = (
    FINE_TUNED / "bert_pyt_statedict_megatron_sparse_int8qat_v21.03.0" / "bert_pyt_statedict_megatron_sparse_int8_qat"
)

#: What of INT8 input and output each architecture's plugins have: -iln for add + norm, -imh for attention.
INT8_FLAGS = {
    "Volta": (),
    "Xavier": ("-iln",),
    "Turing": ("-iln", "-imh"),
    "Ampere": ("-iln", "-imh"),
    "Hopper": ("-iln", "-imh"),
}

#: 2:4 sparse kernels need Ampere's Tensor Cores or newer ones.
SPARSE = ("Ampere", "Hopper")

LENGTHS = (128, 384)


@dataclass(frozen=True)
class GridEngine:
    """One engine of the grid.

    model, precision   what it is called
    lengths            sequence lengths that it is timed at
    max_length         the one that it is built for
    builder            script and flags, but sizes and output
    downloads          scripts, with their words, that bring what it is built from
    random_size        a key of RANDOM_SIZES, where it is built from random weights
    """

    model: str
    precision: str
    lengths: tuple
    max_length: int
    builder: tuple
    downloads: tuple = ()
    random_size: str | None = None

    @property
    def packed(self) -> bool:
        return self.builder[0] == "builder_varseqlen.py"

    def path(self, folder: Path) -> Path:
        name = f"{self.model}_{self.precision}_{self.max_length}.engine".lower()
        return folder / re.sub(r"[^a-z0-9.-]+", "_", name)


def grid(gpu: str, lengths: tuple) -> list[GridEngine]:
    """Every engine for `gpu`, an architecture or "CPU", timed at these sequence lengths."""
    return cpu_grid(lengths) if gpu == "CPU" else gpu_grid(gpu, lengths)


def cpu_grid(lengths: tuple) -> list[GridEngine]:
    """The bundled model and BERT-base (random weights), each engine for all lengths."""
    calibration = ("-j", str(ROOT / "tests" / "data" / "squad_v1.1.json"), "-n", "8")  # ranges do not change the speed
    precisions = {"fp32": (), "fp16": ("--fp16",), "int8": ("--int8", "--fp16", *calibration)}
    random_base = ROOT / "engines" / "benchmark" / "bert_base_random"
    models = {"bundled model": (BUNDLED, None), "BERT-base (random)": (random_base, "base")}
    max_length = max(*LENGTHS, *lengths)
    engines = []
    for model, (folder, random_size) in models.items():
        for precision, flags in precisions.items():
            builder = ("builder.py", "--backend", "openvino", "-pt", str(folder), *flags)
            engines.append(GridEngine(model, precision, lengths, max_length, builder, (), random_size))
    return engines


def gpu_grid(architecture: str, lengths: tuple) -> list[GridEngine]:
    """BERT-base and BERT-large in FP16 and INT8, Megatron with sparse weights where they help: an engine per length."""
    engines = []
    for length in lengths:
        for size in ("base", "large"):
            engines += _bert(architecture, size, length)
        if architecture in SPARSE:
            engines.append(_megatron(length))
    return engines


def _bert(architecture: str, size: str, length: int) -> list[GridEngine]:
    # A checkpoint of 384 tokens serves any length; NGC's of 128 tokens is the one for shorter windows.
    trained = 128 if length <= 128 else 384
    folder = FINE_TUNED / f"bert_tf_ckpt_{size}_qa_squad2_amp_{trained}_v19.03.1"
    checkpoint = ("-m", str(folder / "model.ckpt"), "-c", str(folder))
    download = ("download_model.sh", size, str(trained), "v2")
    int8 = ("--int8", "--fp16", "--strict", *INT8_FLAGS[architecture])
    if size == "large":  # NVIDIA's QAT checkpoint, with the configuration and vocabulary of the other
        quantized = ("-x", str(QAT), "-c", str(folder))
        downloads = (download, ("download_model.sh", "pyt", "v1_1"))
    else:
        quantized = (*checkpoint, "-j", str(ROOT / "squad" / "train-v1.1.json"), "-n", "100")
        downloads = (download, ("download_squad.sh", "v1_1"))
    model, build = f"BERT-{size}", ("builder.py", "--backend", "tensorrt")
    return [
        GridEngine(model, "fp16", (length,), length, (*build, *checkpoint, "--fp16"), (download,)),
        GridEngine(model, "int8", (length,), length, (*build, *quantized, *int8), downloads),
    ]


def _megatron(length: int) -> GridEngine:
    folder = FINE_TUNED / "bert_tf_ckpt_large_qa_squad2_amp_384_v19.03.1"
    flags = ("--pickle", str(MEGATRON), "-c", str(folder), "--fp16", "--int8", "--strict", "-il", "--megatron", "-sp")
    weights = ("download_model.sh", "pyt", "megatron-large", "int8-qat", "sparse")
    downloads = (("download_model.sh", "384", "v2"), weights)
    builder = ("builder_varseqlen.py", "--backend", "tensorrt", *flags)
    return GridEngine("Megatron-large sparse", "int8", (length,), length, builder, downloads)
