"""The TensorRT engines on a real GPU: logits beside PyTorch's float32, times beside PyTorch's half precision, in turn.

On a machine with one NVIDIA GPU, PyTorch and transformers. What else is needed travels with it: --prepare downloads
it into a folder on a machine with a package registry, --folder names that folder on the GPU machine. Exit code 1:
something that applied here failed. A GPU that TensorRT-RTX does not support is said in one line, and the rest is run.
"""

import shutil
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":  # the process's own run, whose path begins with this file's folder
    sys.path[0] = str(ROOT)

from helpers import cli
from helpers.files import require_file
from helpers.outputs import check_outputs, write_json
from scripts.benchmarks.random_model import RANDOM_SIZES
from scripts.gpu_checking import tensorrt_8, transfer

#: SQuAD files to take the windows from, best first: in --folder, in squad/, and one that is always there.
SQUAD_FILES = ("dev-xquad-en-v1.1.json", "dev-v1.1.json")
FALLBACK_SQUAD = ROOT / "tests" / "data" / "squad_v1.1.json"

#: Each runner runs this often in its turn.
RUNS_PER_TURN = 10

MODELS = ("bundled", *RANDOM_SIZES)

#: What argparse is told of the flags that take a number.
_NUMBER = {"type": cli.positive_int, "metavar": "N"}


def parse(arguments):
    parser = cli.Parser(
        "Check and time the TensorRT engines on this machine's GPU, beside PyTorch, which has to be installed with "
        "transformers. Exit code 1: something that applies to this machine failed."
    )
    _add_transfer_arguments(parser)
    _add_engine_arguments(parser)
    _add_measuring_arguments(parser)
    _add_suite_arguments(parser)
    cli.add_verbose(parser)
    args = parser.parse_args(arguments)
    args.backend = args.backend or (["tensorrt"] if args.tensorrt else ["tensorrt_rtx", "tensorrt"])
    travels = args.prepare and args.tensorrt
    args.engine_python = args.engine_python or (f"python{tensorrt_8.PYTHON}" if travels else sys.executable)
    args.network, args.precision = args.network or ["auto"], args.precision or ["fp16"]
    args.model = args.model or MODELS
    args.batch_size = sorted(set(args.batch_size or (1, 8)))
    args.sequence_length = sorted(set(args.sequence_length or (128, 384)))
    return args


def _add_transfer_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    transferred = "what travels to the GPU machine (default: .gpu)"
    add("--folder", type=Path, default=ROOT / ".gpu", metavar="DIR", help=transferred)
    which = parser.add_mutually_exclusive_group()
    which.add_argument(
        "--tensorrt", choices=(tensorrt_8.VERSION,), help="use this release, which travels with its Python"
    )
    which.add_argument("--rtx", action="store_true", help="use TensorRT-RTX (the default of --prepare)")
    add("--prepare", action="store_true", help="fill --folder from the package registry, and end")
    add("--python-version", default="3.12", metavar="X.Y", help="with --prepare --rtx: the GPU machine's")
    add("--part-size", **_NUMBER, default=56, help="with --prepare: MiB of the largest file")
    capability = "with --prepare --tensorrt: the GPU's; kernels for others stay here (all: none do)"
    add("--compute-capability", default="9.0", metavar="X.Y", help=capability)
    headers = "with --prepare --tensorrt: folder of that release's NvInfer.h (TensorRT's public repository, include/)"
    text = "with --prepare: SQuAD text that --suite calibrates and trains the bundled model on"
    add("--training", type=Path, metavar="FILE", help=text)
    add("--headers", type=Path, metavar="DIR", help=f"{headers}; without it build/perf is left out")


def _add_engine_arguments(parser: cli.Parser) -> None:
    """Which engines are built, of which models, for which sizes."""

    def add(*flags, **settings):
        parser.add_argument(*flags, action="append", **settings)

    add("--backend", choices=("tensorrt_rtx", "tensorrt"), help="engines' backend; repeatable (default: both)")
    parser.add_argument(
        "--engine-python", metavar="PATH",
        help="Python that has TensorRT and PyCUDA, where it is another than PyTorch's (TensorRT 8.6 ends at 3.10); "
        "with --prepare --tensorrt: the Python 3.10 that travels (default: python3.10)",
    )  # fmt: skip
    add("--network", choices=("auto", "native", "plugin"), help="engines' form; repeatable (default: auto)")
    precisions = ("fp32", "fp16", "bf16", "int8", "fp8")
    add("--precision", choices=precisions, help="engines' precision; repeatable (default: fp16)")
    add("--model", choices=MODELS, help="base, large: random weights; repeatable (default: all)")
    add("-b", "--batch-size", **_NUMBER, help="rows of a batch; repeatable (default: 1 and 8)")
    add("-s", "--sequence-length", **_NUMBER, help="tokens of a row; repeatable (default: 128 and 384)")


def _add_measuring_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    add("--squad", metavar="FILE", help="SQuAD file to compare on (default: XQuAD's, where it lies)")
    add("--windows", **_NUMBER, default=200, help="windows to compare")
    add("--rounds", **_NUMBER, default=10, help=f"turns of {RUNS_PER_TURN} timed runs each")
    parser.set_defaults(runs_per_turn=RUNS_PER_TURN)
    add("--no-compile", action="store_true", help="leave out torch.compile, the slowest to prepare")
    add("--json", metavar="FILE", help="write the figures as JSON")


def _add_suite_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument_group("all of TensorRT 8.6's networks, step by step").add_argument
    parts = "part to do, in place of the check of single engines; repeatable. --json FILE keeps what was done"
    add("--suite", action="append", choices=("networks", "answers", "table", "tried", "loadgen"), help=parts)
    add("--minutes", type=cli.positive_float, metavar="N", help="begin no step after so many; the same command goes on")
    add(
        "--only",
        action="append",
        metavar="TEXT",
        help="steps whose names hold this text, such as 'large × 384'; repeatable",
    )
    add(
        "--jobs",
        **_NUMBER,
        default=4,
        help="engines to build and networks to check at once (their times are not taken)",
    )
    add("--perf", type=Path, metavar="PATH", help="build/perf (default: the one that travelled, or the repository's)")
    add("--iterations", **_NUMBER, default=100, help="runs of build/perf for each row of the table")
    seconds = "what a run of LoadGen takes, at least; MLPerf's own rule is 600"
    add("--loadgen-seconds", type=cli.positive_float, metavar="S", default=60.0, help=seconds)
    report = "write docs/h100.md, .csv and .png (or --output FILE.md and its neighbours) out of --suite's JSON, and end"
    add(
        "--report",
        type=Path,
        action="append",
        metavar="JSON",
        help=f"{report}; repeatable: of several GPUs of one kind",
    )
    add("--output", type=Path, default=ROOT / "docs" / "h100.md", metavar="FILE", help="with --report: the page")
    add("--workspace", **_NUMBER, default=8192, help="MiB of scratch memory for the table's engines")
    parser.set_defaults(finetune=[], layers=None)


def main(arguments) -> int:
    args = parse(arguments)
    if args.report:
        from scripts.gpu_checking import report

        records = [require_file(path, "record of steps") for path in args.report]
        print("\n".join(str(path) for path in report.write(records, args.output)))
        return 0
    if args.prepare:
        prepare(args)
        return 0
    environment = transfer.install(args.folder)
    squad = require_file(args.squad or default_squad(args.folder), "SQuAD file")
    check_outputs({"--json": args.json}, [squad])
    if args.tensorrt:
        args.engine_python = tensorrt_8.unpack(args.folder / f"tensorrt-{args.tensorrt}")
    if args.suite:
        from scripts.gpu_checking import suite

        return suite.run(args, squad)
    from helpers.backends.tensorrt.gpu import Gpu
    from scripts.gpu_checking import comparison, torch_models
    from scripts.gpu_checking.model_check import Check

    torch = torch_models.import_torch()
    check = Check(args, squad, tuple(torch.cuda.get_device_capability(0)), environment)
    gpu = Gpu(torch.cuda.get_device_name(0), check.capability)
    machine = {"gpu": str(gpu), "torch": torch.__version__}
    cli.note(f"GPU: {gpu}; PyTorch {torch.__version__}")
    with tempfile.TemporaryDirectory(prefix="demobert-gpu-") as folder:
        for model in args.model:
            check.run(model, Path(folder))
            if args.json:  # after each model: machines that are lent are taken back
                figures = comparison.as_json(check.comparisons, check.latencies)
                write_json(args.json, {"machine": machine, "refused": check.refused, "failed": check.failed, **figures})
    return check.summary()


def prepare(args) -> None:
    """Fill --folder with what travels, in parts, and say how large they are."""
    squad = Path(require_file(args.squad or default_squad(args.folder), "SQuAD file"))
    args.folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="parcel-", dir=args.folder) as folder:
        inputs, packages = Path(folder) / "inputs", Path(folder) / "packages"
        inputs.mkdir()
        shutil.copy2(squad, inputs / squad.name)
        if args.training:
            calibrate(require_file(args.training, "training text"), inputs)
        name = f"tensorrt-{args.tensorrt or 'rtx'}.tar"
        if args.tensorrt:
            needs = (*transfer.PYCUDA_NEEDS, *transfer.PROJECT_NEEDS, *transfer.ENGINE_NEEDS)
            generation = None if args.compute_capability == "all" else int(args.compute_capability.replace(".", ""))
            tensorrt_8.collect(packages, args.folder / "downloads", args.engine_python, needs, generation, args.headers)
        else:
            transfer.download(packages, args.python_version)
        parts = transfer.pack(packages, args.folder / name, args.part_size << 20)
        parts += transfer.pack(inputs, args.folder / "inputs.tar", args.part_size << 20)
    for path in parts:
        print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path}")
    print(f"{sum(path.stat().st_size for path in parts) / 2**20:8.1f} MiB in {len(parts)} files")


def calibrate(text: Path, inputs: Path) -> None:
    """The text that --suite trains on, and the bundled model's ranges on it: the GPU machine has no OpenVINO."""
    from scripts.gpu_checking.networks import CALIBRATION, TRAINING

    cli.note("Calibrating the bundled model")
    shutil.copy2(text, inputs / TRAINING)
    with tempfile.TemporaryDirectory(prefix="demobert-calibration-") as folder:
        flags = ["-o", Path(folder) / "x.engine", "-s", "384", "--int8", "--fp16", "--backend", "openvino"]
        flags += ["-pt", ROOT / "models" / "bundled" / "bert_mini_squad11", "-j", text, "-p", inputs / CALIBRATION]
        tensorrt_8.run_program("builder.py", [sys.executable, ROOT / "builder.py", *flags])


def default_squad(folder: Path) -> Path:
    places = [place / name for place in (folder, ROOT / "squad") for name in SQUAD_FILES]
    return next((path for path in places if path.is_file()), FALLBACK_SQUAD)


if __name__ == "__main__":
    sys.argv[0] = "gpu_check.sh"  # the name that its user called it by
    cli.run(main)
