"""BERTs of the published sizes with random weights: the speed of an engine does not depend on their values."""

import json
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

from helpers.bert_config import BertConfig

#: Google's two published sizes (arXiv:1810.04805, section 3), uncased.
RANDOM_SIZES = {
    "base": BertConfig(768, 12, 12, 3072, 30522, gelu="erf"),
    "large": BertConfig(1024, 24, 16, 4096, 30522, gelu="erf"),
}

#: BERT's own initialisation: truncated there, and not here.
_DEVIATION = 0.02


def write_random_model(folder, config: BertConfig, vocab_file=None, seed: int = 0) -> Path:
    """A Hugging Face folder (config.json, model.safetensors, a copy of `vocab_file`) of random weights; returns it.

    Written whole or not at all. A folder that is there is kept as it is.
    """
    from safetensors.numpy import save_file

    folder = Path(folder)
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", suffix=".tmp", dir=folder.parent))
    try:
        values = asdict(config) | {"model_type": "bert", "hidden_act": "gelu"}
        (temporary / "config.json").write_text(json.dumps(values, indent=2), encoding="utf-8")
        if vocab_file is not None:
            shutil.copy(vocab_file, temporary / "vocab.txt")
        save_file(random_state(config, seed), temporary / "model.safetensors", metadata={"format": "pt"})
        temporary.chmod(0o755)  # mkdtemp's 0700 would hide it from others
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def random_state(config: BertConfig, seed: int = 0) -> dict:
    """Float32 tensors under Hugging Face's names: kernels and embeddings N(0, 0.02²), biases 0, gammas 1."""
    import numpy as np

    from helpers.weights.canonical import expected_shapes
    from helpers.weights.pytorch_names import pytorch_name

    generator = np.random.default_rng(seed)
    state = {}
    for name, shape in expected_shapes(config).items():
        if name.endswith(("_bias", "_beta")):
            tensor = np.zeros(shape, np.float32)
        elif name.endswith("_gamma"):
            tensor = np.ones(shape, np.float32)
        else:
            tensor = _DEVIATION * generator.standard_normal(shape, np.float32)
        state[pytorch_name(name)] = tensor
    return state
