"""2:4 structured sparsity (arXiv:2104.08378) of the encoder's dense kernels: two of every four weights become zero.

Which two, and how the others make up for them, is the optimal brain surgeon's answer, column by column, as in SparseGPT
(arXiv:2301.00774): the kernel's outputs on calibration data change as little as a second-order step can make them.
"""

import torch

#: Added to the diagonal of the inputs' second moments, as a share of its mean: keeps the inverse sound (SparseGPT's).
_DAMPING = 0.01


def pruned_2_4(kernel: torch.Tensor, moments: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(kernel with at most two nonzeros in every four along `in`, mask of those kept), float32 and bool [out, in].

    `kernel` is [out, in], `moments` [in, in] the sum of x·xᵀ over the inputs x of calibration data; `in` must be a
    multiple of 4.
    """
    size = kernel.shape[1]
    moments = moments.double()
    damped = moments + _DAMPING * moments.diagonal().mean().clamp(min=1e-12) * torch.eye(size, device=kernel.device)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    rest, mask = kernel.detach().clone(), torch.ones_like(kernel, dtype=torch.bool)
    for first in range(0, size, 4):
        group = slice(first, first + 4)
        loss = (rest[:, group] / factor.diagonal()[group]) ** 2
        mask[:, group].scatter_(1, loss.argsort(1)[:, :2], False)
        for column in range(first, first + 4):
            error = torch.where(mask[:, column], 0, rest[:, column]) / factor[column, column]
            rest[:, column:] -= error[:, None] * factor[column, column:]
    return rest * mask, mask
