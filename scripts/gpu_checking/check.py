"""The TensorRT engines on a real GPU: logits beside PyTorch's float32, times beside PyTorch's half precision, in turn.

On a machine with one NVIDIA GPU, PyTorch and transformers. What else is needed travels with it: --prepare downloads
it into a folder on a machine with a package registry, --folder names that folder on the GPU machine. Exit code 1:
something that applied here failed. A GPU that TensorRT-RTX does not support is said in one line, and the rest is run.
"""

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
from scripts.gpu_checking import transfer

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
    cli.add_verbose(parser)
    args = parser.parse_args(arguments)
    args.backend = args.backend or ["tensorrt_rtx", "tensorrt"]
    args.network, args.precision = args.network or ["auto"], args.precision or ["fp16"]
    args.model = args.model or MODELS
    args.batch_size = sorted(set(args.batch_size or (1, 8)))
    args.sequence_length = sorted(set(args.sequence_length or (128, 384)))
    return args


def _add_transfer_arguments(parser: cli.Parser) -> None:
    add = parser.add_argument
    transferred = "what travels to the GPU machine (default: .gpu)"
    add("--folder", type=Path, default=ROOT / ".gpu", metavar="DIR", help=transferred)
    add("--prepare", action="store_true", help="fill --folder from the package registry, and end")
    add("--python-version", default="3.12", metavar="X.Y", help="with --prepare: the GPU machine's")
    add("--part-size", **_NUMBER, default=60, help="with --prepare: MiB of the largest file")


def _add_engine_arguments(parser: cli.Parser) -> None:
    """Which engines are built, of which models, for which sizes."""

    def add(*flags, **settings):
        parser.add_argument(*flags, action="append", **settings)

    add("--backend", choices=("tensorrt_rtx", "tensorrt"), help="engines' backend; repeatable (default: both)")
    parser.add_argument(
        "--engine-python", default=sys.executable, metavar="PATH",
        help="Python that has TensorRT and PyCUDA, where it is another than PyTorch's (TensorRT 8.6 ends at 3.10)",
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


def main(arguments) -> int:
    args = parse(arguments)
    if args.prepare:
        for path in transfer.download(args.folder, args.python_version, args.part_size << 20):
            print(f"{path.stat().st_size / 2**20:8.1f} MiB  {path}")
        return 0
    squad = require_file(args.squad or default_squad(args.folder), "SQuAD file")
    check_outputs({"--json": args.json}, [squad])
    environment = transfer.install(args.folder)
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


def default_squad(folder: Path) -> Path:
    places = [place / name for place in (folder, ROOT / "squad") for name in SQUAD_FILES]
    return next((path for path in places if path.is_file()), FALLBACK_SQUAD)


if __name__ == "__main__":
    sys.argv[0] = "gpu_check.sh"  # the name that its user called it by
    cli.run(main)
