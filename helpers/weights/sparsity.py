"""2:4 structured sparsity (arXiv:2104.08378): at most two of every four neighbouring weights are not zero."""

import re

import numpy as np

from helpers.weights import BertWeights


def is_sparse_2_4(kernel: np.ndarray) -> bool:
    """Whether `kernel` [out, in] has at most two nonzeros in each group of four along `in`, the summed dimension."""
    if kernel.shape[-1] % 4:
        return False
    groups = kernel.reshape(-1, 4)
    return not (np.count_nonzero(groups, axis=1) > 2).any()


def sparse_2_4_kernels(weights: BertWeights) -> tuple[list[str], list[str]]:
    """The names of the encoder's dense kernels, parted: (2:4 sparse, the others)."""
    kernels = [name for name in weights.tensors if re.match(r"l[0-9]+_.*_kernel$", name)]
    sparse = [name for name in kernels if is_sparse_2_4(weights[name])]
    return sparse, [name for name in kernels if name not in sparse]
