"""The CPU backend: OpenVINO. The package is imported when a function is called, not with this module."""

from pathlib import Path

#: First bytes of the CPU plugin's blobs since OpenVINO 2026.
_BLOB_MAGIC = b"RR_UPCVO"


#: Options that only TensorRT can obey, and what this backend does instead.
IGNORED_OPTIONS = {
    "strict": "it always computes in the precision asked for",
    "workspace_mib": "it takes the memory that it needs",
    "timing_cache": "it times no tactics",
    "optimization_level": "it times no tactics",
    "timing_iterations": "it times no tactics",
    "distributive_independence": "its rows do not depend on the batch around them",
    "plugin_version": "it has no plugins",
    "force_int8_skipln": "its int8 is in the dense layers, where the time is",
    "interleaved": "its own layout is the fastest that it has",
    "logits_by_token": "its logits lie so anyway",
    "compute_capabilities": "it runs on the CPU",
}


def usable() -> tuple[bool, str]:
    """OpenVINO's CPU engine runs wherever its package is installed."""
    try:
        import openvino  # noqa: F401
    except ImportError:
        return False, "the package openvino is not installed (pip install openvino)"
    return True, "OpenVINO runs on this CPU"


def prepare(config, options):
    return _engine_module().PreparedOpenVINO(config, options)


def load(path, card, throughput=False, config=None):
    return _engine_module().load(path, card, throughput, config)


def recognises(path: Path) -> bool:
    """Whether a file without a card begins like an OpenVINO CPU blob."""
    with open(path, "rb") as file:
        return file.read(len(_BLOB_MAGIC)) == _BLOB_MAGIC


def _engine_module():
    from helpers.backends.openvino import engine

    return engine
