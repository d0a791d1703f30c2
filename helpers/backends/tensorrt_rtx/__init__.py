"""TensorRT-RTX: the TensorRT backend with another module. It builds without a GPU, native networks only."""

from pathlib import Path

from helpers.backends import tensorrt
from helpers.backends.tensorrt import building, engine, module

FLAVOUR = module.TENSORRT_RTX


def usable() -> tuple[bool, str]:
    """Whether TensorRT-RTX imports and a GPU answers. Building needs the package alone."""
    return tensorrt.usable(FLAVOUR)


def check(config, options):
    building.check_options(config, options, FLAVOUR)


def build(config, weights, gelu, options):
    return building.build(config, weights, gelu, options, FLAVOUR)


def load(path, card, throughput=False):
    return engine.load_engine(path, card, FLAVOUR)


def recognises(path: Path) -> bool:
    """Whether a file without a card begins like a TensorRT-RTX plan."""
    return module.plan_magic(path) == module.RTX_PLAN_MAGIC
