"""Structured pruning: whole attention heads and feed-forward columns go, so that what is left are smaller dense products.

What goes next is what the answers would miss least for the FLOPs that it frees. A head or column is thought of as having
a gate of 1 on its output: gradient × weight, summed over the weights that read it, is the gradient by that gate
(arXiv:1905.10650, arXiv:1906.10771). Its square, summed over questions, is the gate's Fisher information, half of which
is what closing it adds to the loss, to second order (arXiv:2204.09656).

The answers are drawn from what the network itself says, on random questions to passages. Those of its training it may know
by heart: their loss is nearly 0, but for wrong labels. The bundled model, made 1.5 times faster at once, put 71 % of starts
and ends of 96 random pairs where the whole did, with importance from labels 61 % (2 times: 60 and 53 %).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from helpers.batching import padded_batch
from helpers.bert_config import BertConfig
from helpers.errors import UsageError
from helpers.finetuning.network import Network, to_device
from helpers.finetuning.training import TrainingState, answer_loss, answerable
from helpers.finetuning.windows import TrainingWindow, random_pairs
from helpers.quantization import dense_input_names

#: Columns of a layer go, and stay, in multiples of so many: what kernels of matrix products work on at once.
COLUMN_BLOCK = 64

#: The share of a speed's steps in which it is reached, and in how many cuts: between them the network can recover.
PRUNING_SHARE = 0.4
CUTS = 12


def encoder_flops(config: BertConfig, length: int) -> int:
    """FLOPs that the encoder's dense layers and attention take for one token of sequences of `length` tokens.

    A product and its sum count as two. Of one head: four dense layers of E × H, and two products of H with each token.
    """
    per_head, per_column = _costs(config, length)
    return per_head * sum(config.heads_by_layer) + per_column * sum(config.inner_sizes_by_layer)


def _costs(config: BertConfig, length: int) -> tuple[int, int]:
    """FLOPs by token of one head, and of one feed-forward column."""
    per_head = 8 * config.hidden_size * config.head_size + 4 * length * config.head_size
    return per_head, 4 * config.hidden_size


def check_speeds(config: BertConfig, speeds: Sequence[float], length: int) -> None:
    """Raises UsageError for speeds that are no speed-ups, do not ascend, or can't be reached."""
    if config.layer_groups is not None:
        raise UsageError("--prune takes models whose layers have their own weights: ALBERT's share them")
    if min(speeds) <= 1 or list(speeds) != sorted(set(speeds)):
        raise UsageError("--prune takes speeds above 1, each higher than the one before")
    if len({f"{speed:g}" for speed in speeds}) < len(speeds):
        raise UsageError("--prune: two of the speeds would be written to folders of one name")
    least = replace(
        config,
        num_attention_heads_per_layer=(1,) * config.num_hidden_layers,
        intermediate_size_per_layer=tuple(min(COLUMN_BLOCK, size) for size in config.inner_sizes_by_layer),
    )
    highest = encoder_flops(config, length) / encoder_flops(least, length)
    if speeds[-1] > highest:
        why = f"with a head and {COLUMN_BLOCK} columns in each layer this model is {highest:.2f} times as fast"
        raise UsageError(f"--prune {speeds[-1]:g} can't be reached: {why}")


def attention_output(layer: int) -> str:
    """The dense layer that reads the heads of `layer`."""
    return f"l{layer}_attention_output_dense"


def inner_output(layer: int) -> str:
    """The dense layer that reads the feed-forward columns of `layer`."""
    return f"l{layer}_output_dense"


def importance(network: Network, batches: Iterable[Sequence[TrainingWindow]]) -> dict[str, torch.Tensor]:
    """What the answers to windows hang on: each head's and column's Fisher information, float32 on the CPU.

    By `attention_output` [N] and `inner_output` [F] of each layer; of a float `network` whose weights have gradients.
    """
    scores = {}
    for windows in batches:
        for dense, gates in _gate_gradients(network, windows).items():
            scores[dense] = scores.get(dense, 0) + gates.square().sum(0)
    return {dense: score.cpu() for dense, score in scores.items()}


def _gate_gradients(network: Network, windows: Sequence[TrainingWindow]) -> dict[str, torch.Tensor]:
    """The gradient of each window's loss by the gates of heads and columns, float32 [B, N] and [B, F].

    The answers that the loss is of are drawn by torch's generator.
    """
    layers = range(network.config.num_hidden_layers)
    denses = [dense for i in layers for dense in (attention_output(i), inner_output(i))]
    wanted = {dense_input_names(dense)[0]: dense for dense in denses}
    inputs = {}

    def observe(name: str, tensor: torch.Tensor) -> None:
        if name in wanted:
            inputs[wanted[name]] = tensor

    batch = padded_batch([window.feature for window in windows])
    text = to_device(batch.input_mask, network.device).bool()
    logits, _ = network.run(batch, observe=observe)
    # The sum over windows: each gradient is then its own window's, whatever is beside it.
    loss = answer_loss(logits, text, _drawn_answers(logits, text)) * len(windows)
    gradients = torch.autograd.grad(loss, list(inputs.values()))
    gates = {}
    for (dense, hidden), gradient in zip(inputs.items(), gradients, strict=True):
        gates[dense] = (hidden.detach().float() * gradient.float()).sum(1)
    for dense in map(attention_output, layers):
        gates[dense] = gates[dense].unflatten(1, (-1, network.config.head_size)).sum(2)
    return gates


def _drawn_answers(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Start and end of an answer to each window by its logits' probabilities, int64 [B, 2]."""
    probabilities = answerable(logits.detach(), text).softmax(1).transpose(1, 2)  # [B, 2, S]
    return probabilities.flatten(0, 1).multinomial(1).view(-1, 2)


def kept_parts(
    config: BertConfig, scores: dict[str, torch.Tensor], flops: float, length: int
) -> dict[str, torch.Tensor]:
    """Which heads and columns to keep, int64 and ascending, by the keys of `scores` (see `importance`).

    The least important ones for the FLOPs that they take are left out until the encoder takes at most `flops`. A layer
    keeps a head and COLUMN_BLOCK columns; of a number of columns that is no multiple of that, the odd ones go first.
    """
    per_head, per_column = _costs(config, length)
    left = encoder_flops(config, length)
    order = {dense: score.argsort(descending=True) for dense, score in scores.items()}
    while left > flops:
        best = None
        for dense, kept in order.items():
            is_head = dense.endswith("attention_output_dense")
            step = 1 if is_head else len(kept) % COLUMN_BLOCK or COLUMN_BLOCK
            if len(kept) <= (1 if is_head else COLUMN_BLOCK):
                continue
            freed = step * (per_head if is_head else per_column)
            loss = float(scores[dense][kept[-step:]].sum()) / freed
            if best is None or loss < best[0]:
                best = loss, dense, step, freed
        if best is None:
            break
        _, dense, step, freed = best
        order[dense], left = order[dense][:-step], left - freed
    return {dense: kept.sort().values for dense, kept in order.items()}


def cut(state: TrainingState, kept: dict[str, torch.Tensor]) -> None:
    """Leave in the network, and in the optimizer's moments, the heads and columns of `kept` only (see `kept_parts`)."""
    network, config = state.network, state.network.config
    layers = range(config.num_hidden_layers)
    for i in layers:
        heads, columns = (kept[dense].to(network.device) for dense in (attention_output(i), inner_output(i)))
        within = torch.arange(config.head_size, device=network.device)
        rows = (heads[:, None] * config.head_size + within).flatten()
        for part in ("query", "key", "value"):
            _select(state, f"l{i}_attention_self_{part}_kernel", 0, rows)
            _select(state, f"l{i}_attention_self_{part}_bias", 0, rows)
        _select(state, f"{attention_output(i)}_kernel", 1, rows)
        _select(state, f"l{i}_intermediate_dense_kernel", 0, columns)
        _select(state, f"l{i}_intermediate_dense_bias", 0, columns)
        _select(state, f"{inner_output(i)}_kernel", 1, columns)
    network.config = replace(
        config,
        num_attention_heads_per_layer=tuple(len(kept[attention_output(i)]) for i in layers),
        intermediate_size_per_layer=tuple(len(kept[inner_output(i)]) for i in layers),
    )


def _select(state: TrainingState, name: str, dimension: int, indices: torch.Tensor) -> None:
    weights = state.network.weights
    weights[name] = weights[name].detach().index_select(dimension, indices)
    if name in state.moments:
        state.moments[name] = tuple(moment.index_select(dimension, indices) for moment in state.moments[name])


@dataclass(frozen=True)
class Pruner:
    """Takes a network to one speed, cut by cut, in the first part of its training.

    batches   windows whose random pairs importance is taken from, in batches
    length    tokens of the sequences that FLOPs are counted for
    before    FLOPs of the network that this speed starts from; `after` is what it ends with, at most
    steps     of the whole training for this speed
    """

    batches: Sequence[Sequence[TrainingWindow]]
    length: int
    before: float
    after: float
    steps: int

    @property
    def cut_steps(self) -> list[int]:
        """Before which steps something is cut, ascending; the last cut reaches the speed."""
        last = max(1, round(PRUNING_SHARE * self.steps))
        return sorted({last * number // CUTS for number in range(CUTS)})

    def is_due(self, step: int) -> bool:
        """Whether there is something to cut before `step`."""
        return step in self.cut_steps

    def is_last(self, step: int) -> bool:
        """Whether the cut before `step` is the one that reaches the speed."""
        return step == self.cut_steps[-1]

    def prune(self, state: TrainingState) -> None:
        """The cut that is due before the step that `state`, of a float network, is at."""
        cuts = self.cut_steps
        # Much at first, when most of it is superfluous, less and less later (arXiv:1710.01878, equation 1).
        left = (1 - (cuts.index(state.step) + 1) / len(cuts)) ** 3
        flops = self.after + (self.before - self.after) * left
        torch.manual_seed(state.step)  # what answers are drawn with: a resumed run draws the same ones
        pairs = (random_pairs(windows, number, state.step) for number, windows in enumerate(self.batches))
        scores = importance(state.network, pairs)
        cut(state, kept_parts(state.network.config, scores, flops, self.length))
