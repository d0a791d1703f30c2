"""The GPU backend: TensorRT. Nothing of TensorRT or CUDA is imported before one of these functions is called."""

from pathlib import Path

from helpers.backends.tensorrt import engine, gpu, module
from helpers.backends.tensorrt.plan_builder import PreparedPlan
from helpers.errors import DemoBertError

FLAVOUR = module.TENSORRT


#: Options that change nothing here: none.
IGNORED_OPTIONS = {}


def usable(flavour: module.Flavour = FLAVOUR) -> tuple[bool, str]:
    """Whether TensorRT imports and a GPU answers; the reason names either."""
    try:
        trt = module.load(flavour)
        device = gpu.gpu(gpu.cuda_driver())
    except DemoBertError as error:
        missing = isinstance(error.__cause__, ModuleNotFoundError) and error.__cause__.name == flavour.module
        return False, f"{flavour.module} is not installed" if missing else str(error)
    return True, f"{flavour.module} {trt.__version__} runs on {device}"


def prepare(config, options):
    return PreparedPlan(config, options, FLAVOUR)


def load(path, card, throughput=False, config=None):
    return engine.load_engine(path, card, FLAVOUR, config)


def recognises(path: Path) -> bool:
    """Whether a file without a card begins like a TensorRT plan, which TensorRT-RTX's does not."""
    return module.plan_magic(path).endswith(b"trt") and module.plan_magic(path) != module.RTX_PLAN_MAGIC
