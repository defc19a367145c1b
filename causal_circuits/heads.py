"""What each head does: calibrated previous-token, parent and induction scores, and the copying score.

A raw attention score misleads where the vocabulary is small, because matches are frequent: uniform attention already
puts much weight on them. So each score is the attention mass on a mask, rescaled so that uniform attention scores 0
and attention that stays on the mask scores 1:

    score = (mass - uniform mass) / (1 - uniform mass),   over rows whose mask is not empty.

The raw TransformerLens score (`head_detector`'s "mul", sum(att * mask) / sum(att) over all rows) stands beside it.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.display import Row, table_html, table_text
from causal_circuits.graphs import attention_cells, parents_of
from causal_circuits.models import HookedTransformer, check_model, live_heads
from causal_circuits.tasks import InContextTask

# Trained models put .97 to 1 on the parents, but the softmax read-out makes them spread part of the induction head's
# attention: .48 to .75 on 28 trained models, where heads of no such role scored between -.15 and .13.
PARENT_THRESHOLD, INDUCTION_THRESHOLD = 0.5, 0.3


@dataclass(frozen=True)
class HeadScores:
    """The scores of one head; 0 is uniform attention (or no copying), 1 is perfect.

    Attributes:
        layer, head: which head.
        role: "parent" (parent score at least .5, and a later layer to read the copies), which is called
            "previous-token" where every parent is the position before; "induction" (induction score at least .3); or
            "none".
        previous_token_score: attention from i to i - 1.
        parent_score: attention from positions to their parents.
        induction_score: attention from the last position to positions whose parents' tokens are the target's.
        copying_score: Re(sum of eigenvalues) / sum of |eigenvalues| of W_E W_V W_O W_U; 1 is perfect copying.
        transformer_lens_parent_score, transformer_lens_induction_score: the uncalibrated "mul" scores.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> previous, induction = cc.detect_induction_heads(model, task, n_sequences=64)
    >>> previous.role, round(previous.parent_score, 2), induction.role
    ('previous-token', 1.0, 'induction')
    """

    layer: int
    head: int
    role: str
    previous_token_score: float
    parent_score: float
    induction_score: float
    copying_score: float
    transformer_lens_parent_score: float
    transformer_lens_induction_score: float


class HeadTable(list[HeadScores]):
    """The scores of several heads: a list that shows itself as a table, in a terminal and in a notebook.

    >>> HeadTable([HeadScores(0, 0, "parent", 0.1, 0.98, 0.0, 1.0, 0.9, 0.1)])
    head  role    previous token  parent  induction  copying
    L0H0  parent             0.1    0.98          0        1
    """

    def rows(self) -> list[Row]:
        """One row a head: its name, its role, its calibrated scores."""
        names = {
            "previous token": "previous_token_score",
            "parent": "parent_score",
            "induction": "induction_score",
            "copying": "copying_score",
        }
        return [
            {"head": f"L{head.layer}H{head.head}", "role": head.role}
            | {name: round(float(getattr(head, field)), 3) for name, field in names.items()}
            for head in self
        ]

    def __repr__(self) -> str:
        return table_text(self.rows())

    def _repr_html_(self) -> str:
        return table_html(self.rows(), "What each head does: 0 is uniform attention, 1 is perfect")


@torch.no_grad()
def detect_induction_heads(
    model: HookedTransformer,
    task: InContextTask,
    *,
    tokens: Int[Tensor, "batch n_ctx"] | None = None,
    n_sequences: int = 1024,
    seed: int = 0,
) -> HeadTable:
    """Score every live head of any HookedTransformer on sequences of a task.

    Args:
        model: any HookedTransformer over the task's tokens and context length.
        task: gives the graph, and the sequences unless `tokens` are given.
        n_sequences, seed: of the sequences drawn.

    >>> import causal_circuits as cc
    >>> task = cc.InContextTask(cc.chain_graph(6), d_vocab=3)
    >>> model = cc.plant_circuit(task.graph, d_vocab=3)
    >>> [head.role for head in cc.detect_induction_heads(model, task, n_sequences=64)]
    ['previous-token', 'induction']
    """
    tokens = task.sample(n_sequences, seed=seed).tokens if tokens is None else tokens
    task.check_tokens(tokens)
    check_model(model, task.d_vocab, task.n_ctx)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(model.cfg.n_layers)]
    _, cache = model.run_with_cache(tokens.to(model.W_U.device), names_filter=names)
    scores = HeadTable()
    for layer, head in live_heads(model):
        pattern = cache[names[layer]][:, head].cpu()
        scores.append(_score_head(model, task, tokens.cpu(), pattern, layer, head))
    return scores


def _score_head(
    model: HookedTransformer, task: InContextTask, tokens: Tensor, pattern: Tensor, layer: int, head: int
) -> HeadScores:
    parents, induction = parent_mask(task).expand(len(tokens), -1, -1), induction_mask(task, tokens)
    previous = torch.diag(torch.ones(task.n_ctx - 1, dtype=torch.bool), -1)
    previous[-1] &= not task.has_query  # the query is no one's child: its row answers to nothing
    at_query = torch.zeros_like(induction)
    at_query[:, -1] = induction[:, -1]
    previous_score = calibrated_score(pattern, previous.expand_as(parents))
    parent_score, induction_score = calibrated_score(pattern, parents), calibrated_score(pattern, at_query)
    return HeadScores(
        layer=layer,
        head=head,
        role=_role(task, parent_score, induction_score, is_read=layer < model.cfg.n_layers - 1),
        previous_token_score=previous_score,
        parent_score=parent_score,
        induction_score=induction_score,
        copying_score=copying_score(model, layer, head),
        transformer_lens_parent_score=_mul_score(pattern, parents),
        transformer_lens_induction_score=_mul_score(pattern, induction),
    )


def _role(task: InContextTask, parent_score: float, induction_score: float, is_read: bool) -> str:
    """The role of a head; `is_read` says that a later layer can read what it copies to positions before the last."""
    if not (is_read and parent_score >= PARENT_THRESHOLD):
        return "induction" if induction_score >= INDUCTION_THRESHOLD else "none"
    is_chain = all(parents_of(task.graph, i) == (i - 1,) for i in range(1, task.n_ctx - task.has_query))
    return "previous-token" if is_chain else "parent"


def parent_mask(task: InContextTask) -> Bool[Tensor, "n_ctx n_ctx"]:
    """True at the cells where attention to parents belongs: see `graphs.attention_cells`.

    >>> from causal_circuits import chain_graph
    >>> parent_mask(InContextTask(chain_graph(4), d_vocab=2)).nonzero().tolist()
    [[1, 0], [2, 1]]
    """
    mask = torch.zeros(task.n_ctx, task.n_ctx, dtype=torch.bool)
    for cell in attention_cells(task.graph):
        mask[cell] = True
    return mask


def induction_mask(task: InContextTask, tokens: Int[Tensor, "batch n_ctx"]) -> Bool[Tensor, "batch n_ctx n_ctx"]:
    """True at (i, j), j <= i, where the tokens of j's parents are what position i should look for.

    With one parent that is token(parent(j)) = token(i), for every row i. With several it is defined for the last
    row alone: the tokens of j's parents are those of the target's parents.

    >>> import torch
    >>> from causal_circuits import InContextTask, chain_graph, induction_mask
    >>> mask = induction_mask(InContextTask(chain_graph(4), d_vocab=2), torch.tensor([[0, 1, 1, 0]]))
    >>> mask[0, 3].tolist()  # the token before position 1 is that of position 3
    [False, True, False, False]
    """
    batch, n_ctx = tokens.shape
    mask = torch.zeros(batch, n_ctx, n_ctx, dtype=torch.bool)
    single = len(task.target_parents) == 1
    for j in range(n_ctx - 1):
        above = list(parents_of(task.graph, j))
        if single and len(above) == 1 and task.target_parents == (n_ctx - 1,):
            mask[:, j:, j] = tokens[:, above] == tokens[:, j:]
        elif len(above) == len(task.target_parents):
            mask[:, -1, j] = (tokens[:, above] == tokens[:, list(task.target_parents)]).all(dim=-1)
    return mask


def calibrated_score(
    pattern: Float[Tensor, "batch query_pos key_pos"], mask: Bool[Tensor, "batch query_pos key_pos"]
) -> float:
    """Attention mass on the mask, with uniform causal attention at 0 and full mass at 1; rows without a mask left out.

    >>> pattern = torch.tensor([[[1.0, 0.0], [0.5, 0.5]]])
    >>> calibrated_score(pattern, torch.tensor([[[False, False], [True, False]]]))
    0.0
    """
    rows = mask.any(dim=-1) & ~mask.all(dim=-1)
    rows[:, 0] = False  # the first position can only attend to itself
    if not rows.any():
        return 0.0
    visible = torch.arange(1, pattern.shape[-1] + 1, dtype=pattern.dtype)
    mass = (pattern * mask).sum(dim=-1)[rows].mean()
    uniform = (mask.sum(dim=-1) / visible)[rows].mean()
    return float((mass - uniform) / (1 - uniform))


def _mul_score(pattern: Tensor, mask: Tensor) -> float:
    """TransformerLens head_detector's "mul" score, averaged over sequences."""
    return float(((pattern * mask).sum(dim=(1, 2)) / pattern.sum(dim=(1, 2))).mean())


@torch.no_grad()
def copying_score(model: HookedTransformer, layer: int, head: int) -> float:
    """Re(sum of eigenvalues) / sum of |eigenvalues| of the full OV circuit W_E W_V W_O W_U; 0 if it writes nothing.

    >>> from causal_circuits import chain_graph, copying_score, plant_circuit
    >>> round(copying_score(plant_circuit(chain_graph(6), d_vocab=3), layer=1, head=0), 3)
    1.0
    """
    attn = model.blocks[layer].attn
    circuit = model.W_E @ attn.W_V[head] @ attn.W_O[head] @ model.W_U
    eigenvalues = torch.linalg.eigvals(circuit.double())
    size = eigenvalues.abs().sum()
    return float(eigenvalues.sum().real / size) if size > 0 else 0.0
