"""Several heads learn several parents if they take turns, each given what the heads before it carry.

Heads that start alike stay alike: from small random weights all of them settle on the same parent. And at the start
the *first* derivative of the loss sees no parent of the target: with a uniform last row, an entry (i, j) of layer 0
counts for every last-row entry t alike. What does see it is the mixed *second* derivative. Give layer 1 a match
between a head's copies at the query and at the keys; then its score at key i rises by

    sum_jt P_h[i, j] P_h[T-1, t] 1[x_j = x_t],

so that minus the derivative of the loss with respect to the product P_h[i, j] P_h[T-1, t] is

    - E[ dL/ds_i  1[x_j = x_t] ],      s_i = layer 1's score of key i,

exact while head h's match is off, whatever the other heads do. Part of it is had without any match, by raising s_i in
all sequences alike (a row of the target's matrix is worth more than a root's); what the match itself is worth is

    G[i, j, t] = - Cov( dL/ds_i,  1[x_j = x_t] ).

Without the covariance a key that is t itself, which always matches, won the second turn wherever some rows are roots.
With no head on duty G is the information that one parent carries alone; with some on duty, what a further parent adds
to them: the gain that a *second* head is after.
(For one head and a query that is given, t = T - 1 and this is the gradient of Algorithm 1, Nichani, Damian & Lee 2024.)

In its turn a head gets the t of the largest total gain for its last row, a step along G[:, :, t] for the others, its
match is switched on, and layer 0 settles for some steps. After the last turn everything is trained together.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models import HookedTransformer, layout_of, match_blocks, warm_readout
from causal_circuits.recording import RecordAt, TrainingRecord, join_records
from causal_circuits.tasks import Batch, Task
from causal_circuits.training.checkpoints import Checkpoints
from causal_circuits.training.checks import check_untrained
from causal_circuits.training.loop import OnRecord, train_ensemble
from causal_circuits.training.recipe import Stage, TrainConfig
from causal_circuits.training.steps import mean_loss

# A row follows G only where its largest entry is this many standard errors above 0: rows of roots stay uniform.
CLEAR = 4.5
# A head is put on duty only for a position t whose total gain is this share of the first head's; later heads gain more
# than the first or nearly as much (measured .9 to 2.7 times), a head too many less (.5 on a 3-gram).
WORTH_A_HEAD = 0.7


@check_arguments
@dataclass(frozen=True)
class PairGain:
    """G[i, j, t]: what the loss gains where a further head attends from i to j and from the last position to t.

    Attributes:
        value: [query_pos, key_pos, last_key_pos]; nats a unit of layer-1 score; 0 unless j < i < n_ctx - 1.
        standard_error: the same shape.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> gain = cc.training.pair_gain(cc.disentangled_transformer(3, 8, (2, 1)), task.sample(64, seed=0))
    >>> gain.value.shape == gain.standard_error.shape == (8, 8, 8)
    True
    """

    value: Float[Tensor, "query_pos key_pos last_key_pos"]
    standard_error: Float[Tensor, "query_pos key_pos last_key_pos"]

    def support(self) -> Float[Tensor, " last_key_pos"]:
        """For each t, the sum over rows of the best entry's gain: how well t explains all rows together."""
        return self.value.clamp(min=0).amax(dim=1).sum(dim=0)


@check_arguments
@dataclass(frozen=True)
class Turn:
    """One head's turn.

    Attributes:
        head: of layer 0.
        last_key: the position t that its last row was given: a parent of the target. None if no t was worth it.
        support: [last_key_pos], the total gain of every t.
        gain: [query_pos, key_pos], G at t (at the best t, if none was worth it).
        start: the training step at which the turn began.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> model = cc.models.warm_readout(cc.disentangled_transformer(3, 8, (2, 1)), 4.0)
    >>> turn = cc.training.take_turn(model, task.sample(5_000, seed=0), head=0)
    >>> turn.head, turn.last_key in (6, 7), tuple(turn.gain.shape)  # positions 6 and 7 are the parents of the target
    (0, True, (8, 8))
    """

    head: int
    last_key: int | None
    support: Float[Tensor, " last_key_pos"]
    gain: Float[Tensor, "query_pos key_pos"]
    start: int


@check_arguments
@dataclass(frozen=True)
class TurnConfig:
    """How heads take turns.

    Args:
        steps: of training in all, turns included.
        settle: steps of layer 0's attention alone after each turn.
        settle_rate, learning_rate: of Adam, in turns and afterwards (with a cosine).
        match, readout: scale of the identity blocks of layer 1 and of W_U.
        attention: scores given to the best entry of a row.
        batch_size, seed: of the training data.
        n_sequences: from which G is estimated, each turn; all of a table's, if it has fewer.

    >>> TurnConfig(steps=3000).settle
    60
    """

    steps: int = 6000
    settle: int = 60
    settle_rate: float = 0.03
    learning_rate: float = 0.05
    match: float = 4.0
    readout: float = 4.0
    attention: float = 8.0
    batch_size: int = 1024
    seed: int = 0
    n_sequences: int = 32_768

    def __post_init__(self) -> None:
        for name in ("steps", "settle", "batch_size", "n_sequences"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1: got {getattr(self, name)}")
        for name in ("match", "readout", "attention"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite: got {getattr(self, name)}")
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or more: got {self.seed}")


@check_arguments
def train_in_turns(
    model: HookedTransformer,
    task: Task,
    config: TurnConfig | None = None,
    *,
    record: RecordAt | None = None,
    progress: bool | None = None,
    on_record: OnRecord | None = None,
    checkpoints: Checkpoints | None = None,
) -> tuple[TrainingRecord, tuple[Turn, ...]]:
    """Train a disentangled model with any number of heads in layer 0; the weights it comes with are overwritten.

    It is what `train` does by default for a target with several parents.

    Args:
        model: disentangled, of two layers.
        task: with any number of parents.
        config: steps, scales, batch size and seed.
        record, progress, on_record: as in `train`; steps are counted through.
        checkpoints: as in `train`, a subfolder for each turn.

    Returns:
        The record of all steps, and what each head was given in its turn.

    Raises:
        ValueError: the model is reduced or has another number of layers, or `steps` leave none for training together.

    >>> from causal_circuits import InContextTask, disentangled_transformer, ngram_graph
    >>> task = InContextTask(ngram_graph(8, order=2), d_vocab=3)
    >>> config = TurnConfig(steps=20, settle=5, batch_size=64)
    >>> _, turns = train_in_turns(disentangled_transformer(3, 8, (2, 1)), task, config, progress=False)
    >>> sorted(turn.last_key for turn in turns)         # the target's parents
    [6, 7]
    """
    config, record = config or TurnConfig(), record or RecordAt()
    n_heads = layout_of(model).n_heads[0]
    if not layout_of(model).can_take_turns:
        raise ValueError(
            f"heads take turns in disentangled models of two layers: this one is {layout_of(model).kind} with "
            f"{layout_of(model).n_layers}; train it with a TrainConfig"
        )
    if config.steps <= n_heads * config.settle:
        raise ValueError(
            f"steps must exceed settle x heads = {config.settle} x {n_heads}: got {config.steps}; lower settle"
        )
    if checkpoints is None or not any(Path(checkpoints.folder).rglob("step_*.json")):  # else it goes on from there
        check_untrained(model, "train_in_turns", "train(model, task, TrainConfig(..., warm_start=None))")
    recorded, began = record.within(config.steps), time.perf_counter()

    def run(stage: Stage, index: int, start: int) -> TrainingRecord:
        own = checkpoints.within(f"turn_{index}", began) if checkpoints else None
        return _run(model, task, config, stage, index, start, recorded, record, progress, on_record, own)

    records: list[TrainingRecord] = []
    turns: list[Turn] = []
    _reset(model, config.readout)
    for head in range(n_heads):
        start = head * config.settle
        batch = task.sample_at_most(config.n_sequences, seed=(config.seed, head, _TURN_STREAM))
        turns.append(take_turn(model, batch, head, tuple(turns), config, start))
        settle = Stage(config.settle, config.settle_rate, train=("W_Q.0",))
        records.append(run(settle, head, start))
    together = Stage(config.steps - n_heads * config.settle, config.learning_rate, schedule="cosine")
    start = n_heads * config.settle
    records.append(run(together, n_heads, start))
    return join_records(records, config), tuple(turns)


_TURN_STREAM = 2402_14736  # ends the seeds of the sequences that G is estimated from


def _run(
    model: HookedTransformer,
    task: Task,
    config: TurnConfig,
    stage: Stage,
    index: int,
    start: int,
    recorded: tuple[int, ...],
    record: RecordAt,
    progress: bool | None,
    on_record: OnRecord | None,
    checkpoints: Checkpoints | None,
) -> TrainingRecord:
    """One stage, with a stream of data of its own; the last state is recorded once, by the last stage."""
    stop = start + stage.steps
    wanted = [step - start for step in recorded if start <= step < stop or step == stop == config.steps]
    seed = int(np.random.SeedSequence((config.seed, index)).generate_state(1)[0])
    plain = TrainConfig(stages=(stage,), batch_size=config.batch_size, warm_start=None, seed=seed)
    folder = None if record.folder is None else Path(record.folder) / f"turn_{index}"
    counted = None if on_record is None else (lambda step, trained: on_record(start + step, trained))
    there = replace(record, steps=tuple(wanted), folder=folder)
    (trained,) = train_ensemble(
        [model], [task], [plain], record=there, progress=progress, on_record=counted, checkpoints=checkpoints
    )
    return trained


@torch.no_grad()
def _reset(model: HookedTransformer, readout: float) -> None:
    """Zero everything that is trained, and let W_U read the token that layer 1 attends to."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.zero_()
    warm_readout(model, readout)


@check_arguments
def take_turn(
    model: HookedTransformer,
    batch: Batch,
    head: int,
    before: tuple[Turn, ...] = (),
    config: TurnConfig | None = None,
    start: int = 0,
) -> Turn:
    """Put a head of layer 0 on duty, in place: last row on the best t, other rows along G, match switched on.

    Args:
        model: disentangled, the head's match still off (as `train_in_turns` leaves it).
        batch: sequences that G is estimated from.
        before: the turns already taken; their t are not given out again.
        config: scales.
        start: the step to be noted in the turn.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> model = cc.models.warm_readout(cc.disentangled_transformer(3, 8, (2, 1)), 4.0)
    >>> cc.training.take_turn(model, task.sample(5_000, seed=0), head=0).last_key in (6, 7)  # a parent of the target
    True
    """
    config = config or TurnConfig()
    gain = pair_gain(model, batch)
    support = gain.support()
    for turn in before:
        if turn.last_key is not None:
            support[turn.last_key] = 0.0
    best = int(support.argmax())
    rows, errors = gain.value[:, :, best], gain.standard_error[:, :, best]
    first = float(before[0].support.max()) if before else 0.0
    top, at = rows.max(dim=1)
    clear = (top > CLEAR * errors.gather(1, at[:, None])[:, 0]) & (top > 0)
    if not clear.any() or float(support[best]) < WORTH_A_HEAD * first:
        return Turn(head, None, support, rows, start)
    layout, weights = layout_of(model), model.blocks[0].attn.W_Q.data[head]
    position = layout.slots()["position"].slice
    block = weights[position, position]
    step = (rows / top.clamp(min=1e-30)[:, None]).clamp(0.0, 1.0) * clear[:, None]
    block.copy_(config.attention * step.to(block.dtype))
    block[-1, best] = config.attention
    for block_of_match in match_blocks(model, head, by_copy=True):
        block_of_match.copy_(config.match * torch.eye(layout.d_vocab, dtype=block.dtype))
    return Turn(head, best, support, rows, start)


@check_arguments
def pair_gain(model: HookedTransformer, batch: Batch, chunk: int = 1024) -> PairGain:
    """G of the module's text, on a batch, for a head whose match is off; the model is left as it was.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> gain = cc.training.pair_gain(cc.disentangled_transformer(3, 8, (2, 1)), task.sample(64, seed=0))
    >>> bool(gain.value[0].eq(0).all())  # the first row has nothing to look at
    True
    """
    n_ctx = batch.tokens.shape[1]
    moments = torch.zeros(2, n_ctx, n_ctx * n_ctx, dtype=torch.float64)  # of slope and its square, times the match
    slopes, matches = torch.zeros(2, n_ctx, dtype=torch.float64), torch.zeros(n_ctx * n_ctx, dtype=torch.float64)
    for start in range(0, len(batch), chunk):
        piece = batch[start : start + chunk]
        slope = _last_score_gradients(model, piece)
        same = (piece.tokens[:, :, None] == piece.tokens[:, None, :]).view(len(piece), -1).to(slope.dtype)
        matches += same.double().sum(dim=0)
        for power in (0, 1):
            weight = -slope if power == 0 else slope.square()
            slopes[power] += weight.double().sum(dim=0)
            moments[power] += (weight.T @ same).double()
    moments, slopes, often = moments / len(batch), slopes / len(batch), matches / len(batch)
    mean = moments[0] - slopes[0, :, None] * often
    square = moments[1] * (1 - 2 * often) + slopes[1, :, None] * often.square()  # of slope times (match - often)
    error = ((square - mean.square()).clamp(min=0) / max(len(batch) - 1, 1)).sqrt()
    visible = torch.ones(n_ctx, n_ctx, dtype=torch.float64).tril(-1)
    visible[-1] = 0.0
    shape = (n_ctx, n_ctx, n_ctx)
    value = mean.view(shape) * visible[:, :, None]
    return PairGain(value.float(), error.view(shape).float())


def _last_score_gradients(model: HookedTransformer, batch: Batch) -> Float[Tensor, "batch key_pos"]:
    """dL/ds of every sequence, L its own loss and s the scores of the last layer's last query, summed over heads."""
    batch = batch.to(model.W_U.device, model.W_U.dtype)
    kept: list[Tensor] = []

    def cut(pattern: Tensor, hook: object) -> Tensor:  # what lies before the pattern needs no gradient
        kept.append(pattern.detach().requires_grad_())
        return kept[0]

    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        model.hooks(fwd_hooks=[(f"blocks.{model.cfg.n_layers - 1}.attn.hook_pattern", cut)]),
    ):
        loss = mean_loss(model, batch) * len(batch)
    (gradient,) = torch.autograd.grad(loss, kept)
    pattern, gradient = kept[0].detach()[:, :, -1], gradient[:, :, -1]
    return (pattern * (gradient - (gradient * pattern).sum(dim=-1, keepdim=True))).sum(dim=1).cpu()
