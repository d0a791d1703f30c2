"""Checkpoints → BertWeights. One module per format; canonical names are listed in `canonical.py`."""

from dataclasses import dataclass, field

import numpy as np


@dataclass
class BertWeights:
    """The tensors of one BERT with a SQuAD head, under their canonical names (`canonical.py`), float32.

    `ranges` holds the quantization ranges (`<tensor>_amax`) of QAT checkpoints, float32, scalar or [out, 1].
    `gelu` is what `hidden_act: gelu` means where the checkpoint came from: "tanh" (Google) or "erf" (PyTorch).
    `source` names the file, for messages.
    """

    tensors: dict[str, np.ndarray]
    gelu: str
    source: str
    ranges: dict[str, np.ndarray] = field(default_factory=dict)

    def __getitem__(self, name: str) -> np.ndarray:
        return self.tensors[name]
