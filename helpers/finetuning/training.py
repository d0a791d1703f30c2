"""The training loop: distillation from the starting model, gold answers, or both; a state that outlives a kill."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch.nn import functional

from helpers.batching import padded_batch
from helpers.errors import DemoBertError
from helpers.families import FAMILIES
from helpers.finetuning.network import Network
from helpers.finetuning.windows import TrainingWindow, shuffled_batches

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

#: Added to the scores of padding, which can't be an answer.
_NO_ANSWER = -30000.0


@dataclass(frozen=True)
class TrainingOptions:
    """How to train. `distill` is the share of the loss that comes from the starting model, 0 to 1; `epochs` may be a
    part of one; `seed` fixes the order of the data and dropout."""

    epochs: float = 1.0
    learning_rate: float = 5e-5
    batch_size: int = 16
    distill: float = 0.0
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
    """

    network: Network
    trained: list[str]
    masks: dict[str, torch.Tensor] = field(default_factory=dict)
    moments: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    step: int = 0

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
) -> None:
    """Train `state.network` in place from `state.step` to the end, or to the step in which `is_stopped` becomes true.

    `save` is called every `options.save_every` steps, and after such a last one. Each step depends on the state and the
    step's number only, so a resumed run ends like one that was never stopped.
    Raises DemoBertError when the loss is no longer finite.
    """
    network, steps = state.network, step_count(len(windows), options)
    parameters = {name: tensor.requires_grad_() for name, tensor in state.parameters().items()}
    optimizer = _optimizer(parameters, network.input_ranges or {})
    _restore(optimizer, parameters, state)
    smoothed = None
    for step, indices in _remaining_batches(state.step, steps, windows, options):
        torch.manual_seed(options.seed * 1_000_003 + step)  # dropout's
        rate = learning_rate_at(step, steps, options)
        _set_rates(optimizer, rate)
        loss = _loss(network, teacher, [windows[i] for i in indices], options)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise DemoBertError(f"the loss is not finite at step {step}: give a smaller --lr")
        _descend(optimizer, parameters, loss, state)
        state.step = step + 1
        smoothed = value if smoothed is None else 0.95 * smoothed + 0.05 * value
        on_step(Progress(state.step, steps, smoothed, rate))
        ends = state.step < steps and is_stopped()
        if ends or (state.step % options.save_every == 0 and state.step < steps):
            _keep(optimizer, parameters, state)
            save(state)
        if ends:
            break
    for parameter in parameters.values():
        parameter.requires_grad_(False)


def _set_rates(optimizer: torch.optim.AdamW, rate: float) -> None:
    for group in optimizer.param_groups:
        # Adam's steps have the size of the rate, whatever the gradient: a range's has to be in proportion to it.
        group["lr"] = rate * RANGE_RATE * group["params"][0].item() if group["is_range"] else rate


def _descend(optimizer: torch.optim.AdamW, parameters: dict, loss: torch.Tensor, state: TrainingState) -> None:
    """One step down the loss's gradient; what was pruned stays pruned."""
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters.values(), GRADIENT_NORM)
    optimizer.step()
    with torch.no_grad():
        for name, mask in state.masks.items():
            state.network.weights[name].mul_(mask)


def _remaining_batches(
    done: int, steps: int, windows: list[TrainingWindow], options: TrainingOptions
) -> Iterator[tuple[int, list[int]]]:
    per_epoch = math.ceil(len(windows) / options.batch_size)
    for epoch in range(done // per_epoch, math.ceil(steps / per_epoch)):
        for number, batch in enumerate(shuffled_batches(windows, options.batch_size, options.seed, epoch)):
            step = epoch * per_epoch + number
            if done <= step < steps:
                yield step, batch


def _optimizer(parameters: dict[str, torch.Tensor], ranges: dict[str, torch.Tensor]) -> torch.optim.AdamW:
    """AdamW, with a group for each range, whose step is its own (`is_range`)."""
    kernels = [name for name in parameters if name.endswith(("_kernel", "_weights"))]
    others = [name for name in parameters if name not in kernels and name not in ranges]
    groups = [
        {"params": [parameters[name] for name in kernels], "weight_decay": WEIGHT_DECAY, "is_range": False},
        {"params": [parameters[name] for name in others], "is_range": False},
    ]
    groups += [{"params": [amax], "is_range": True} for amax in ranges.values()]
    return torch.optim.AdamW(groups, weight_decay=0.0, eps=1e-6)


def _restore(optimizer, parameters: dict[str, torch.Tensor], state: TrainingState) -> None:
    for name, (mean, square) in state.moments.items():
        step = torch.tensor(float(state.step))
        optimizer.state[parameters[name]] = {"step": step, "exp_avg": mean.clone(), "exp_avg_sq": square.clone()}


def _keep(optimizer, parameters: dict[str, torch.Tensor], state: TrainingState) -> None:
    for name, parameter in parameters.items():
        kept = optimizer.state[parameter]
        state.moments[name] = kept["exp_avg"], kept["exp_avg_sq"]


def _loss(
    network: Network, teacher: Network | None, windows: list[TrainingWindow], options: TrainingOptions
) -> torch.Tensor:
    batch = padded_batch([window.feature for window in windows])
    text = torch.from_numpy(batch.input_mask).to(network.device).bool()
    logits, hidden = network.run(batch, options.dropout)
    loss = logits.new_zeros(())
    if options.distill < 1:
        loss = loss + (1 - options.distill) * _gold_loss(logits, text, windows)
    if options.distill > 0:
        with torch.no_grad():
            teacher_logits, teacher_hidden = teacher.run(batch)
        distilled = _logits_loss(logits, teacher_logits, text) + _hidden_loss(hidden, teacher_hidden, text)
        loss = loss + options.distill * distilled
    return loss


def _gold_loss(logits: torch.Tensor, text: torch.Tensor, windows: list[TrainingWindow]) -> torch.Tensor:
    """Mean cross entropy of the answer's start and end (arXiv:1810.04805, section 4.2)."""
    places = torch.tensor([[window.start, window.end] for window in windows], device=logits.device)
    return functional.cross_entropy(_answerable(logits, text), places)


def _logits_loss(logits: torch.Tensor, teacher: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Kullback-Leibler divergence from the teacher's softened distributions over the positions (arXiv:1503.02531)."""
    ours = functional.log_softmax(_answerable(logits, text) / TEMPERATURE, 1)
    theirs = functional.log_softmax(_answerable(teacher, text) / TEMPERATURE, 1)
    divergence = (theirs.exp() * (theirs - ours)).sum(1)
    return TEMPERATURE**2 * divergence.mean()


def _hidden_loss(hidden: list[torch.Tensor], teacher: list[torch.Tensor], text: torch.Tensor) -> torch.Tensor:
    """The squared error of each layer's output as a share of the teacher's variance, summed over the layers.

    Matching what every layer says keeps the student general: the logits of familiar questions say little
    (arXiv:1909.10351).
    """
    loss = hidden[0].new_zeros(())
    for ours, theirs in zip(hidden, teacher, strict=True):
        theirs = theirs[text]
        loss = loss + functional.mse_loss(ours[text], theirs) / theirs.var()
    return loss


def _answerable(logits: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    return logits.masked_fill(~text[..., None], _NO_ANSWER)
