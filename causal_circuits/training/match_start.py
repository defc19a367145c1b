"""Where training with several parents starts: softly at the parents that the gradient of order k favours.

With k parents the first derivative of the loss in layer 0's attention says little about the graph, and heads that start
alike stay alike. The derivative of order k, one head a parent, is the sum over sequences of what a token gains as a
draw from the target's law where k keys match the target's parents (docs/SEVERAL_PARENTS.md): one pass over sequences
computes it for every choice of keys. Here its largest entries become attention scores.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Frame, Result, frame
from causal_circuits.information.matches import Gains, match_sums
from causal_circuits.information.target_search import candidates
from causal_circuits.models import HookedTransformer, layout_of, match_blocks, warm_readout
from causal_circuits.tasks import Batch

SCORE, MATCH, READOUT = 6.0, 3.0, 3.0


@check_arguments
@dataclass(frozen=True, repr=False, eq=False)
class MatchStart(Result):
    """What was written into a model before its first step.

    Attributes:
        target_parents: head h of layer 0 looks from its last row at number h of these, with a score of 6; none if no
            position matches any choice of them, and nothing is written in.
        keys: the position that each head looks at from every other row; -1 where the row is left uniform.
        shares: of a full match, by position, at most 1; a row's keys get 6 times as much as their score.

    >>> task = cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3)
    >>> model = cc.disentangled_transformer(3, 8, (2, 1))
    >>> start = cc.training.start_from_matches(model, task.sample(5000))
    >>> start.target_parents, start.keys.tolist()
    ((6, 7), [[-1, -1, 0, 1, 2, 3, 4, -1], [-1, -1, 1, 2, 3, 4, 5, -1]])
    """

    target_parents: tuple[int, ...]
    keys: Int[np.ndarray, "head_index position"]
    shares: Float[np.ndarray, " position"]

    def to_frame(self) -> Frame:
        """One row for each position whose attention was written in."""
        rows = np.flatnonzero(self.shares > 0)
        keys = {f"L0H{head}": own[rows] for head, own in enumerate(self.keys)}
        return frame({"position": rows, **keys, "share": self.shares[rows]})


@check_arguments
def start_from_matches(model: HookedTransformer, batch: Batch) -> MatchStart:
    """Write into a model, in place, where the gradient of order k points; its weights are overwritten.

    The number of parents, at most one a head, is found with them. Layer 0: for each position the keys of its best
    match, if it is more than half of a full one; rows without stay uniform. Layer 1 compares what each head copied, and
    W_U reads the token that it attends to: 3 times the identity each. Of several heads in layer 1 each compares half as
    strongly as the one before: equal ones would stay equal, and from two attentions W_U can tell how many keys match.

    Args:
        model: disentangled, of two layers.
        batch: sequences with their targets, laws or labels; no graph is used.

    Raises:
        ValueError: the model is of another kind.

    >>> model = cc.disentangled_transformer(3, 8, (2, 1))
    >>> cc.training.start_from_matches(model, cc.InContextTask(cc.ngram_graph(8, 2), d_vocab=3).sample(5000))
    MatchStart(target_parents=(6, 7), keys=[2, 8], shares=[8])
    """
    layout = layout_of(model)
    check_match_start(model)
    batch.check(layout.d_vocab, layout.n_ctx)
    start = _best_matches(batch, layout.n_heads[0])
    with torch.no_grad():
        for parameter in (*(block.attn.W_Q for block in model.blocks), model.unembed.W_U):
            parameter.zero_()
        warm_readout(model, READOUT)
        _write(model, start)
    return start


def check_match_start(model: HookedTransformer) -> None:
    """Refuse models without heads whose copies layer 1 compares."""
    layout = layout_of(model)
    if (layout.kind, layout.n_layers) != ("disentangled", 2):
        raise ValueError(
            f"a start from matches needs a disentangled model of two layers: this one is {layout.kind} with "
            f"{layout.n_layers}; train it with match_start=None"
        )


def _best_matches(batch: Batch, n_heads: int) -> MatchStart:
    n_ctx = batch.tokens.shape[1]
    gains = Gains.of(batch.tokens.cpu(), batch.target_probs.cpu().float())
    moving = [t for t in range(n_ctx) if bool((gains.tokens[:, t] != gains.tokens[0, t]).any())]
    keys, shares = np.full((n_heads, n_ctx), -1), np.zeros(n_ctx)
    if not moving:
        return MatchStart((), keys, shares)
    gains, found = candidates(gains, moving, min(n_heads, len(moving)))
    best, sums = found[0], match_sums(gains, found[0].target)
    for i in np.flatnonzero(best.best[:-1] >= 0).tolist():
        keys[: len(best.target), i] = best.keys(i)
        shares[i] = min(float(sums.gain[best.best[i], i] / sums.full_mean[best.best[i]]), 1.0)
    return MatchStart(best.target if shares.any() else (), keys, shares)


def _write(model: HookedTransformer, start: MatchStart) -> None:
    layout, weights = layout_of(model), model.blocks[0].attn.W_Q.data
    position = layout.slots()["position"].slice
    identity = torch.eye(layout.d_vocab, dtype=weights.dtype, device=weights.device)
    rows = np.flatnonzero(start.shares > 0)
    scores = SCORE * torch.from_numpy(start.shares[rows]).to(weights)
    for head, target_parent in enumerate(start.target_parents):
        block = weights[head, position, position]
        block[torch.from_numpy(rows), torch.from_numpy(start.keys[head, rows])] = scores
        block[-1, target_parent] = SCORE
        for layer_1_head, match in enumerate(match_blocks(model, head, by_copy=True)):
            match.copy_(MATCH / 2**layer_1_head * identity)
