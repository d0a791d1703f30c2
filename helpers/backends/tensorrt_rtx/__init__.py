"""TensorRT-RTX: the TensorRT backend with another module. It builds without a GPU, native networks only."""

from pathlib import Path

from helpers.backends import tensorrt
from helpers.backends.tensorrt import engine, module
from helpers.backends.tensorrt.plan_builder import PreparedPlan

FLAVOUR = module.TENSORRT_RTX


#: Options that only TensorRT itself can obey.
IGNORED_OPTIONS = dict.fromkeys(
    ("timing_cache", "optimization_level", "timing_iterations"),
    "TensorRT-RTX chooses its kernels where the engine runs",
)


def usable() -> tuple[bool, str]:
    """Whether TensorRT-RTX imports and a GPU answers. Building needs the package alone."""
    return tensorrt.usable(FLAVOUR)


def prepare(config, options):
    return PreparedPlan(config, options, FLAVOUR)


def load(path, card, throughput=False, config=None):
    return engine.load_engine(path, card, FLAVOUR, config)


def recognises(path: Path) -> bool:
    """Whether a file without a card begins like a TensorRT-RTX plan."""
    return module.plan_magic(path) == module.RTX_PLAN_MAGIC
