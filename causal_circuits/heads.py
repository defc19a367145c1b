"""What each head does: calibrated previous-token, parent and induction scores, and the copying score.

Where the vocabulary is small matches are frequent, and uniform attention already puts much weight on them. So a score
is the attention mass on a mask, rescaled so that uniform attention scores 0 and attention that stays on the mask 1:

    score = (mass - uniform mass) / (1 - uniform mass),   over rows whose mask is not empty.

The raw TransformerLens score (`head_detector`'s "mul", sum(att * mask) / sum(att) over all rows) stands beside it. In a
short context what a head prefers by position, or by the key's own token, goes along with the matches. So the induction
score has a null: the same head's score when all that positions take from their parents comes from another sequence.
"""

from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from einops import einsum, repeat
from jaxtyping import Bool, Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.display import Result, Row, table_html, table_text
from causal_circuits.graphs import edge_entries, parents_of
from causal_circuits.interventions import standard_error
from causal_circuits.models import HookedTransformer, attachments, check_forward, check_head, check_model, live_heads
from causal_circuits.recording import watch_attention
from causal_circuits.tasks import Task
from causal_circuits.tasks.base import graph_of

# Trained models put .97 to 1 on the parents, but the softmax read-out makes them spread part of the induction head's
# attention: .48 to .75 on 28 trained models, where heads of no such role scored between -.15 and .13; .40 to .78 on 12
# more at n_ctx 20 (3 and 10 tokens, alpha .1 and 1), with nulls of -.21 to .03. The induction threshold is the share of
# the way from the null to 1; the difference must also exceed so many standard errors.
PARENT_THRESHOLD, INDUCTION_THRESHOLD, STANDARD_ERRORS = 0.5, 0.3, 4.0

Reader = Literal["keys", "logits"]


@check_arguments
@dataclass(frozen=True, repr=False)
class HeadScores(Result):
    """The scores of one head; 0 is uniform attention (or no copying), 1 is perfect.

    Attributes:
        layer, head: which head.
        role: "parent" (parent score at least .5, and a later layer to read the copies), which is called
            "previous-token" where every parent is the position before; "induction" (the induction score lies .3 of the
            way from its null, or from 0 if that is more, to 1, and 4 standard errors above); or "none". What a head
            attends to gives its role, not what it writes: see the copying score.
        previous_token_score: attention from i to i - 1.
        parent_score: attention from positions to their parents.
        induction_score: attention from the last position to positions whose parents' tokens are the target's.
        copying_score: Re(sum of eigenvalues) / sum of ``|eigenvalues|`` of the circuit through which the head's copies
            are read (`copying_score`); 1 is perfect copying.
        transformer_lens_parent_score, transformer_lens_induction_score: the uncalibrated "mul" scores.
        induction_null: the induction score when positions take their parents' values from another sequence. In a graph
            with one child, or with children of one parent only, a perfect head's null is 1: attending to them always is
            as good, and nothing shows that it matches.
        induction_standard_error: of the induction score less its null, over sequences.
        copies_read_by: "keys" (a later head matches what this one copies) for heads before the last layer that do no
            induction, or "logits" (the unembedding).

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
    induction_null: float = 0.0
    induction_standard_error: float = 0.0
    copies_read_by: Reader = "logits"


@check_arguments
class HeadTable(list[HeadScores]):
    """The scores of several heads: a list that shows itself as a table, in a terminal and in a notebook.

    Attributes:
        attached: what was attached to the model (hooks, parametrizations, edited frozen weights), in words.

    >>> HeadTable([HeadScores(0, 0, "parent", 0.1, 0.98, 0.0, 1.0, 0.9, 0.1)])
    head  role    previous token  parent  induction  induction null  copying  copies read by
    L0H0  parent             0.1    0.98          0               0        1  logits
    """

    attached: tuple[str, ...] = ()

    def rows(self) -> list[Row]:
        """One row a head: its name, its role, its calibrated scores."""
        names = {
            "previous token": "previous_token_score",
            "parent": "parent_score",
            "induction": "induction_score",
            "induction null": "induction_null",
            "copying": "copying_score",
        }
        return [
            {"head": f"L{head.layer}H{head.head}", "role": head.role}
            | {name: round(float(getattr(head, field)), 3) for name, field in names.items()}
            | {"copies read by": head.copies_read_by}
            for head in self
        ]

    def __repr__(self) -> str:
        return "\n".join([table_text(self.rows()), *(f"analysed with the {found}" for found in self.attached)])

    def _repr_html_(self) -> str:
        said = ["What each head does: 0 is uniform attention, 1 is perfect", *(f"with the {a}" for a in self.attached)]
        return table_html(self.rows(), "; ".join(said))


@check_arguments
@torch.no_grad()
def detect_induction_heads(
    model: HookedTransformer,
    task: Task,
    *,
    tokens: Int[Tensor, "batch n_ctx"] | None = None,
    n_sequences: int = 1024,
    seed: int = 0,
) -> HeadTable:
    """Score every live head of any HookedTransformer on sequences of a task.

    Args:
        model: any HookedTransformer over the task's tokens and context length.
        task: gives the graph, and the sequences unless `tokens` are given.
        tokens: two different sequences or more.
        n_sequences, seed: of the sequences drawn.

    >>> [head.role for head in cc.detect_induction_heads(model, task, n_sequences=64)]
    ['previous-token', 'induction']
    """
    tokens = task.sample_at_most(n_sequences, seed=seed).tokens if tokens is None else tokens
    task.check_tokens(tokens)
    check_model(model, task.d_vocab, task.n_ctx)
    if len(tokens) < 2:
        raise ValueError(f"head scores need at least 2 sequences, for a standard error: got {len(tokens)}")
    check_forward(model, tokens)
    patterns = _patterns(model, tokens.to(model.W_U.device))
    without = _patterns_without_parents(model, task, tokens.to(model.W_U.device))
    scores = HeadTable(
        _score_head(model, task, tokens.cpu(), patterns[layer][:, head], without[layer][:, head], layer, head)
        for layer, head in live_heads(model)
    )
    scores.attached = attachments(model)
    return scores


def _patterns(model: HookedTransformer, tokens: Tensor) -> list[Tensor]:
    """Every layer's pattern, [batch, head_index, query_pos, key_pos], on the CPU."""
    with watch_attention(model) as watched:
        model(tokens)
    return [watched.patterns[layer].cpu() for layer in range(model.cfg.n_layers)]


def _patterns_without_parents(model: HookedTransformer, task: Task, tokens: Tensor) -> list[Tensor]:
    """The patterns when, in every layer, what positions take from their parents comes from another sequence.

    A layer's output at position q changes by the sum over parents k of P_qk (v'_k - v_k), v' the values of the sequence
    half a batch away. It changes before any hook that the model has there: what such a hook takes away stays away.
    """
    mask, layers = parent_mask(task).to(tokens.device), range(model.cfg.n_layers)
    names = [f"blocks.{layer}.attn.hook_v" for layer in layers]
    _, cache = model.run_with_cache(tokens.roll(len(tokens) // 2, dims=0), names_filter=names)
    values: dict[int, Tensor] = {}
    patterns: dict[int, Tensor] = {}

    def keep(value: Tensor, hook: object, kept: dict[int, Tensor], layer: int) -> None:
        kept[layer] = value

    def exchange(z: Tensor, hook: object, layer: int) -> Tensor:
        weight, change = patterns[layer] * mask, cache[names[layer]] - values[layer]
        n_sharing = weight.shape[1] // change.shape[2]  # grouped queries share values
        change = repeat(change, "batch key group d -> batch key (group sharing) d", sharing=n_sharing)
        moved = einsum(weight, change.to(weight.dtype), "batch head query key, batch key head d -> batch query head d")
        return z + moved.to(z.dtype)

    keeping = [
        (f"blocks.{layer}.attn.hook_{kind}", partial(keep, kept=kept, layer=layer))
        for layer in layers
        for kind, kept in (("v", values), ("pattern", patterns))
    ]
    outputs = [model.hook_dict[f"blocks.{layer}.attn.hook_z"] for layer in layers]
    with model.hooks(fwd_hooks=keeping):
        level = model.context_level
        try:
            for layer, point in enumerate(outputs):
                point.add_hook(partial(exchange, layer=layer), level=level, prepend=True)
            model(tokens)
        finally:
            for point in outputs:
                point.remove_hooks("fwd", level=level)
    return [patterns[layer].cpu() for layer in layers]


def _score_head(
    model: HookedTransformer,
    task: Task,
    tokens: Tensor,
    pattern: Tensor,
    without_parents: Tensor,
    layer: int,
    head: int,
) -> HeadScores:
    parents, induction = parent_mask(task).expand(len(tokens), -1, -1), induction_mask(task, tokens)
    previous = torch.diag(torch.ones(task.n_ctx - 1, dtype=torch.bool), -1)
    previous[-1] &= not task.has_query  # nothing reads what the query's row copies
    at_query = torch.zeros_like(induction)
    at_query[:, -1] = induction[:, -1]
    scores, nulls = _row_scores(pattern, at_query), _row_scores(without_parents, at_query)
    found = HeadScores(
        layer=layer,
        head=head,
        role="none",
        previous_token_score=calibrated_score(pattern, previous.expand_as(parents)),
        parent_score=calibrated_score(pattern, parents),
        induction_score=calibrated_score(pattern, at_query),
        copying_score=0.0,
        transformer_lens_parent_score=_mul_score(pattern, parents),
        transformer_lens_induction_score=_mul_score(pattern, induction),
        induction_null=calibrated_score(without_parents, at_query),
        induction_standard_error=standard_error(scores - nulls),
    )
    is_last = layer == model.cfg.n_layers - 1
    role = _role(task, found, is_read=not is_last)
    read_by: Reader = "logits" if is_last or role == "induction" else "keys"
    copying = copying_score(model, layer, head, read_by=read_by)
    return replace(found, role=role, copying_score=copying, copies_read_by=read_by)


def _role(task: Task, head: HeadScores, is_read: bool) -> str:
    """The role of a head; `is_read` says that a later layer can read what it copies to positions before the last."""
    if not (is_read and head.parent_score >= PARENT_THRESHOLD):
        null = max(head.induction_null, 0.0)  # uniform attention scores 0 and uses no token
        is_large = head.induction_score >= null + INDUCTION_THRESHOLD * (1 - null)
        gain = head.induction_score - head.induction_null
        is_significant = gain > STANDARD_ERRORS * head.induction_standard_error
        return "induction" if is_large and is_significant else "none"
    is_chain = all(parents_of(graph_of(task), i) == (i - 1,) for i in range(1, task.n_ctx - task.has_query))
    return "previous-token" if is_chain else "parent"


@check_arguments
def parent_mask(task: Task) -> Bool[Tensor, "n_ctx n_ctx"]:
    """True at the cells where attention to parents belongs: see `graphs.attention_cells`.

    >>> parent_mask(cc.InContextTask(cc.chain_graph(4), d_vocab=2)).nonzero().tolist()
    [[1, 0], [2, 1]]
    """
    return torch.from_numpy(edge_entries(graph_of(task))[0])


@check_arguments
def induction_mask(task: Task, tokens: Int[Tensor, "batch n_ctx"]) -> Bool[Tensor, "batch n_ctx n_ctx"]:
    """True at (i, j), j <= i, where the tokens of j's parents are what position i should look for.

    With one parent that is token(parent(j)) = token(i), for every row i. With several it is defined for the last
    row alone: the tokens of j's parents are those of the target's parents.

    >>> mask = cc.heads.induction_mask(cc.InContextTask(cc.chain_graph(4), d_vocab=2), torch.tensor([[0, 1, 1, 0]]))
    >>> mask[0, 3].tolist()  # the token before position 1 is that of position 3
    [False, True, False, False]
    """
    task.check_tokens(tokens)
    batch, n_ctx = tokens.shape
    mask = torch.zeros(batch, n_ctx, n_ctx, dtype=torch.bool)
    single = len(task.target_parents) == 1
    for j in range(n_ctx - 1):
        above = list(parents_of(graph_of(task), j))
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
    scores = _row_scores(pattern, mask)
    return float(scores.mean()) if len(scores) else 0.0


def _row_scores(pattern: Tensor, mask: Tensor) -> Tensor:
    """The score's share of every row in which some keys are on the mask and some are not; their mean is the score."""
    visible = torch.ones(mask.shape[-2:], dtype=torch.bool).tril()
    rows = mask.any(dim=-1) & (visible & ~mask).any(dim=-1)
    rows[:, 0] = False  # the first position can only attend to itself
    n_visible = torch.arange(1, pattern.shape[-1] + 1, dtype=pattern.dtype)
    mass, uniform = (pattern * mask).sum(dim=-1)[rows], (mask.sum(dim=-1) / n_visible)[rows]
    return (mass - uniform) / (1 - uniform.mean())


def _mul_score(pattern: Tensor, mask: Tensor) -> float:
    """TransformerLens head_detector's "mul" score, averaged over sequences."""
    return float(((pattern * mask).sum(dim=(1, 2)) / pattern.sum(dim=(1, 2))).mean())


@check_arguments
@torch.no_grad()
def copying_score(model: HookedTransformer, layer: int, head: int, *, read_by: Reader = "logits") -> float:
    """Re(sum of eigenvalues) / sum of ``|eigenvalues|`` of a circuit from tokens to tokens; 0 if it is zero.

    What a head writes, W_E W_V W_O, means something to its readers alone, so one circuit must be chosen:

    * "logits": W_E W_V W_O W_U, the full OV circuit; the attended token raises its own logit.
    * "keys": W_E W_Q W_K^T (W_E W_V W_O)^T, with W_Q and W_K of a later head; a query looks for positions that hold a
      copy of its own token. Where there are several, that of the largest norm counts, with the query's own copy (by
      this head) in place of its token if that is larger. Scores are defined up to a constant a query, so each row's
      mean is subtracted first.

    By the weights alone: normalisation, biases, rotations and MLPs between the two are left out.

    >>> model = cc.plant_circuit(cc.chain_graph(6), d_vocab=3)
    >>> round(cc.heads.copying_score(model, 1, 0), 3), round(cc.heads.copying_score(model, 0, 0, read_by="keys"), 3)
    (1.0, 1.0)
    >>> cc.heads.copying_score(model, 0, 0)                      # no logit reads what the first layer writes
    0.0
    """
    check_head(model, layer, head)
    attn = model.blocks[layer].attn
    written = model.W_E @ _shared(model, attn.W_V, head) @ attn.W_O[head]
    if read_by == "logits":
        if model.cfg.d_vocab_out != model.cfg.d_vocab:
            raise ValueError(
                f"copying to the logits needs as many outputs as tokens, {model.cfg.d_vocab}: "
                f"got d_vocab_out = {model.cfg.d_vocab_out}; read_by='keys' needs none"
            )
        return _positive_share((written @ model.W_U).double())
    readers = [(later, reader) for later, reader in live_heads(model) if later > layer]
    if not readers:
        raise ValueError(f"copies of the last layer, {layer}, are read by no later head: use read_by='logits'")
    circuits = []
    for later, reader in readers:
        reading = model.blocks[later].attn
        W_Q, W_K = reading.W_Q[reader], _shared(model, reading.W_K, reader)
        for query in (model.W_E, written):
            scores = (query @ W_Q @ W_K.mT @ written.mT).double()
            circuits.append(scores - scores.mean(dim=1, keepdim=True))
    return _positive_share(max(circuits, key=lambda circuit: float(circuit.norm())))


def _shared(model: HookedTransformer, weight: Tensor, head: int) -> Tensor:
    """A head's keys or values; with grouped queries a bridge has one for several heads."""
    return weight[head * len(weight) // model.cfg.n_heads]


def _positive_share(circuit: Tensor) -> float:
    eigenvalues = torch.linalg.eigvals(circuit)
    size = eigenvalues.abs().sum()
    return float(eigenvalues.sum().real / size) if size > 0 else 0.0
