"""The training loop: distillation from the starting model, gold answers, or both; a state that outlives a kill."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn import functional

from helpers.batching import padded_batch
from helpers.errors import DemoBertError
from helpers.families import FAMILIES
from helpers.finetuning.network import Network, to_device
from helpers.finetuning.windows import TrainingWindow, random_pairs, shuffled_batches

#: Softens both distributions of distillation, so that the teacher's second thoughts count (arXiv:1503.02531).
TEMPERATURE = 2.0

#: AdamW's (arXiv:1711.05101) weight decay, of kernels only, as in BERT's own fine-tuning (arXiv:1810.04805, A.2).
WEIGHT_DECAY = 0.01

#: The norm that a step's gradient is cut to, and the share of steps in which the rate rises: BERT's, too.
GRADIENT_NORM = 1.0
WARM_UP = 0.1

#: A learned range moves in a step by about this times the learning rate times itself. Measured with the bundled model's
#: QAT (half an epoch, rate 5e-5, XQuAD F1): 0 68.0, 20 68.1, 100 68.7.
RANGE_RATE = 100.0

#: Steps from one look at what a GPU has computed to the next.
_READ_EVERY = 25

#: Added to the scores of padding, which can't be an answer.
_NO_ANSWER = -30000.0


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. `distill` is the share of the loss that comes from the starting model, 0 to 1; `epochs` may be a
    part of one; `seed` fixes the order of the data and dropout. In the first steps, `random_pairs` (0 to 1) of all, every
    other one has random questions to its passages, which only the starting model answers."""

    epochs: float = 1.0
    learning_rate: float = 5e-5
    batch_size: int = 16
    distill: float = 0.0
    random_pairs: float = 0.0
    dropout: float = 0.0
    seed: int = 0
    save_every: int = 100


@dataclass
class TrainingState:
    """What a run has to keep to be resumed: all that later steps depend on.

    trained   canonical names of the weights that are trained; the network's input ranges are trained, too
    masks     name → bool: the kernels that stay 2:4 sparse
    moments   AdamW's, by the trained tensor's name: (mean of gradients, mean of their squares)
    step      how many steps are done
    speed     which of the speeds of structured pruning is trained for, from 0 on
    """

    network: Network
    trained: list[str]
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    step: int = 0
    speed: int = 0

    def forget_ranges(self) -> None:
        """Leave a float network."""
        self.network.input_ranges = None
        self.moments = {name: moments for name, moments in self.moments.items() if name in self.network.weights}

    def begin_next_speed(self) -> None:
        """Training begins again, with the network as it is."""
        self.moments, self.step, self.speed = {}, 0, self.speed + 1

    def parameters(self) -> dict[str, torch.Tensor]:
        """Everything that is trained, by name; always in the same order, in which the gradients' norms are summed."""
        weights = {name: self.network.weights[name] for name in self.trained}
        return weights | dict(sorted((self.network.input_ranges or {}).items()))


@dataclass(frozen=True)
class Progress:
    """What is said of a step: how many are done, of how many; the mean loss of late; the learning rate."""

    step: int
    steps: int
    loss: float
    learning_rate: float


def trained_names(network: Network, embeddings: bool) -> list[str]:
    """The tensors that are trained. Without `embeddings` their tables stay as they are, as one that is no family's own."""
    tables = ("word_embeddings", "token_type_embeddings", "position_embeddings")
    if embeddings:
        tables = () if FAMILIES[network.config.model_type].has_segments else ("token_type_embeddings",)
    return [name for name in network.weights if not name.endswith(tables)]


def step_count(windows: int, options: TrainingOptions) -> int:
    """How many steps a run has; at least one."""
    return max(1, round(math.ceil(windows / options.batch_size) * options.epochs))


def learning_rate_at(step: int, steps: int, options: TrainingOptions) -> float:
    """Linear warm-up, then linear decay to 0."""
    warm_up = max(1, round(WARM_UP * steps))
    share = (step + 1) / warm_up if step < warm_up else (steps - step) / max(1, steps - warm_up)
    return options.learning_rate * share


def train(
    state: TrainingState,
    teacher: Network | None,
    windows: list[TrainingWindow],
    options: TrainingOptions,
    on_step: Callable[[Progress], None] = lambda progress: None,
    save: Callable[[TrainingState], None] = lambda state: None,
    is_stopped: Callable[[], bool] = lambda: False,
    change: Callable[[TrainingState], bool] = lambda state: False,
) -> None:
    """Train `state.network` in place from `state.step` to the end, or to the step in which `is_stopped` becomes true.

    `save` is called every `options.save_every` steps, and after such a last one. `change` is called before each step, and
    says whether it gave the state other tensors to train. Each step depends on the state and the step's number only, so
    a resumed run ends like one that was never stopped.
    Raises DemoBertError when the loss is no longer finite.
    """
    network, steps = state.network, step_count(len(windows), options)
    trained, late = _Trained(state), _LateLoss(network.device)
    for step, indices in _remaining_batches(state.step, steps, windows, options):
        if change(state):
            trained = _Trained(state)
        torch.manual_seed(options.seed * 1_000_003 + step)  # dropout's
        rate = learning_rate_at(step, steps, options)
        batch = _step_batch(step, steps, [windows[i] for i in indices], options)
        late.add(trained.descend(_loss(network, teacher, *batch, options), rate))
        state.step = step + 1
        on_step(Progress(state.step, steps, late.read(state.step, state.step == steps), rate))
        ends = state.step < steps and is_stopped()
        if ends or (state.step % options.save_every == 0 and state.step < steps):
            late.read(state.step, True)
            save(state)
        if ends:
            break
    trained.release()


class _LateLoss:
    """The mean loss of late. A GPU is asked for it now and then only: to wait for each step's would leave it idle."""

    def __init__(self, device: torch.device):
        self._every = _READ_EVERY if device.type == "cuda" else 1
        self._mean, self._shown = None, math.nan

    def add(self, loss: torch.Tensor) -> None:
        self._mean = loss if self._mean is None else 0.95 * self._mean + 0.05 * loss

    def read(self, step: int, for_sure: bool) -> float:
        """It, or what it was a few steps ago; `for_sure`: it. Raises DemoBertError when it is no longer finite."""
        if for_sure or step % self._every == 0 or math.isnan(self._shown):
            self._shown = float(self._mean)
            if not math.isfinite(self._shown):
                raise DemoBertError(f"the loss is not finite at step {step - 1}: give a smaller --lr")
        return self._shown


class _Trained:
    """The tensors of a state that are trained, and AdamW of them, whose moments are the state's own."""

    def __init__(self, state: TrainingState):
        self._state = state
        self._parameters = {name: tensor.requires_grad_() for name, tensor in state.parameters().items()}
        self._on_gpu = state.network.device.type == "cuda"
        self._ranges = state.network.input_ranges or {}
        self._sizes: list[float] = []
        self._optimizer = self._adamw()
        for name, parameter in self._parameters.items():
            moments = state.moments.get(name) or (torch.zeros_like(parameter), torch.zeros_like(parameter))
            state.moments[name] = tuple(moment.detach() for moment in moments)
            step = torch.tensor(float(state.step), device=parameter.device if self._on_gpu else None)
            mean, square = state.moments[name]
            self._optimizer.state[parameter] = {"step": step, "exp_avg": mean, "exp_avg_sq": square}

    def _adamw(self) -> torch.optim.AdamW:
        """With a group for each range, whose step is its own."""
        kernels = [name for name in self._parameters if name.endswith(("_kernel", "_weights"))]
        others = [name for name in self._parameters if name not in kernels and name not in self._ranges]
        groups = [
            {"params": [self._parameters[name] for name in kernels], "weight_decay": WEIGHT_DECAY},
            {"params": [self._parameters[name] for name in others]},
            *({"params": [amax]} for amax in self._ranges.values()),
        ]
        return torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-6, fused=self._on_gpu or None)

    def descend(self, loss: torch.Tensor, rate: float) -> torch.Tensor:
        """One step down the loss's gradient; what was pruned stays pruned. Returns the loss without its gradient."""
        self._set_rates(rate)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), GRADIENT_NORM)
        self._optimizer.step()
        with torch.no_grad():
            for name, mask in self._state.masks.items():
                self._state.network.weights[name].mul_(mask)
        return loss.detach()

    def _set_rates(self, rate: float) -> None:
        if self._ranges and (not self._on_gpu or not self._sizes or self._state.step % _READ_EVERY == 0):
            self._sizes = torch.stack([amax.detach() for amax in self._ranges.values()]).tolist()
        kernels, others, *ranges = self._optimizer.param_groups
        kernels["lr"] = others["lr"] = rate
        for group, size in zip(ranges, self._sizes, strict=True):
            # Adam's steps have the size of the rate, whatever the gradient: a range's has to be in proportion to it.
            group["lr"] = rate * RANGE_RATE * size

    def release(self) -> None:
        for parameter in self._parameters.values():
            parameter.requires_grad_(False)


def _step_batch(
    step: int, steps: int, batch: list[TrainingWindow], options: TrainingOptions
) -> tuple[list[TrainingWindow], bool]:
    """The windows of a step, and whether they have the answers' places."""
    if step % 2 == 0 or step >= options.random_pairs * steps:
        return batch, True
    return random_pairs(batch, options.seed, step), False


def _remaining_batches(
    done: int, steps: int, windows: list[TrainingWindow], options: TrainingOptions
) -> Iterator[tuple[int, list[int]]]:
    per_epoch = math.ceil(len(windows) / options.batch_size)
    for epoch in range(done // per_epoch, math.ceil(steps / per_epoch)):
        for number, batch in enumerate(shuffled_batches(windows, options.batch_size, options.seed, epoch)):
            step = epoch * per_epoch + number
            if done <= step < steps:
                yield step, batch


def _loss(
    network: Network, teacher: Network | None, windows: list[TrainingWindow], labelled: bool, options: TrainingOptions
) -> torch.Tensor:
    """Of one batch; `labelled`: the windows have the answers' places, else only the teacher's word counts."""
    batch = padded_batch([window.feature for window in windows])
    text = to_device(batch.input_mask, network.device).bool()
    logits, hidden = network.run(batch, options.dropout)
    distill = options.distill if labelled else 1.0
    loss = logits.new_zeros(())
    if distill < 1:
        places = np.array([[window.start, window.end] for window in windows])
        loss = loss + (1 - distill) * answer_loss(logits, text, to_device(places, network.device))
    if distill > 0:
        with torch.no_grad():
            teacher_logits, teacher_hidden = teacher.run(batch)
        distilled = _logits_loss(logits, teacher_logits, text) + _hidden_loss(hidden, teacher_hidden, text)
        loss = loss + distill * distilled
    return loss


def answer_loss(logits: torch.Tensor, text: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Mean cross entropy of the answers' starts and ends (arXiv:1810.04805, section 4.2).

    Of logits [B, S, 2], text [B, S] bool, places [B, 2] int64.
    """
    return functional.cross_entropy(answerable(logits, text), places)


def _logits_loss(logits: torch.Tensor, teacher: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from the teacher's softened distributions over the positions (arXiv:1503.02531)."""
    ours = functional.log_softmax(answerable(logits, text) / TEMPERATURE, 1)
    theirs = functional.log_softmax(answerable(teacher, text) / TEMPERATURE, 1)
    divergence = (theirs.exp() * (theirs - ours)).sum(1)
    return TEMPERATURE**2 * divergence.mean()


def _hidden_loss(hidden: list[torch.Tensor], teacher: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
    """The squared error of each layer's output as a share of the teacher's variance, summed over the layers.

    Matching what every layer says keeps the student general: the logits of familiar questions say little
    (arXiv:1909.10351).
    """
    mask, loss = text[..., None].float(), hidden[0].new_zeros(())
    count = mask.sum() * hidden[0].shape[-1]
    for ours, theirs in zip(hidden, teacher, strict=True):  # masks, not indices: a GPU need not say how many there are
        mean = (theirs * mask).sum() / count
        variance = ((theirs - mean).square() * mask).sum() / (count - 1)
        loss = loss + ((ours - theirs).square() * mask).sum() / count / variance
    return loss


def answerable(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Logits [B, S, 2] by which padding can't be an answer; `text` is bool [B, S]."""
    return logits.masked_fill(~text[..., None], _NO_ANSWER)
