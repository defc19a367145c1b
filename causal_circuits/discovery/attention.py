"""Read the causal graph back out of layer 0's attention (layer 1 in the paper).

*Which position is the parent?* The attention pattern, averaged over sequences, says so. *Is there a parent at all?*
Attention cannot tell: a root's row is under no pressure to be uniform, and a trained model makes use of roots (their
tokens follow the stationary law), so neither .9 attention nor a loss that rises when the entry is cut means an edge;
the rows of a decoy (`plant_decoy`) are none. What only an edge can have is information: the gradient of the attention
weight at uniform attention is large at an edge and near zero in a root's row. It is computed without the model, from
sequences enough to find the graph by themselves (`recover_graph`); `from_attention` is the graph without this test.
"""

from collections.abc import Sequence

import networkx as nx
import torch
from jaxtyping import Float, Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.discovery.extracted import ExtractedGraph
from causal_circuits.discovery.proposals import NOT_TESTED, by_information, by_recovery, judge, propose, report_heads
from causal_circuits.discovery.recover import recover_graph
from causal_circuits.graphs import edge_entries, n_ctx_of
from causal_circuits.information import estimate_gradient
from causal_circuits.models import HookedTransformer, attachments, check_forward, check_model, live_heads, log_probs
from causal_circuits.recording import watch_attention
from causal_circuits.statistics import auroc
from causal_circuits.tasks import Batch, Task
from causal_circuits.tasks.batch import check_tokens, chunks

# A head is unused if, on so many sequences, no log-probability depends on what it attends to, but for rounding.
_TRIED, _NO_CHANGE = 256, 1e-6


@check_arguments
@torch.no_grad()
def mean_attention(
    model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"]
) -> Float[Tensor, "layer head_index query_pos key_pos"]:
    """The real attention patterns of every layer, averaged over sequences; float32, on the CPU.

    >>> attention = cc.mean_attention(model, batch.tokens)
    >>> attention[0, 0, 3, 2] > 0.999  # layer 0, head 0, from position 3 to its parent
    tensor(True)
    """
    if not len(tokens):
        raise ValueError("the mean attention needs at least one sequence: got none")
    check_tokens(tokens, model.cfg.d_vocab)
    check_forward(model, tokens)
    total = torch.zeros(())
    for rows in chunks(len(tokens)):
        piece = tokens[rows].to(model.W_U.device)
        with watch_attention(model) as watched:
            log_probs(model, piece)
        total = total + watched.attention().double().cpu() * len(piece)
    return (total / len(tokens)).float()


@check_arguments
def extract_graph(
    model: HookedTransformer,
    task: Task | None = None,
    *,
    batch: Batch | None = None,
    n_sequences: int = 20_000,
    min_weight: float = 0.5,
    level: float = 0.01,
    seed: int = 1,
) -> ExtractedGraph:
    """The causal graph that layer 0's attention proposes, without the rows that information says are roots.

    Args:
        model: any HookedTransformer.
        task: where evaluation sequences are drawn from (its graph is used only to know whether there is a query).
        batch: sequences of your own in place of drawn ones, with a query as last position unless the task says
            otherwise: give `BatchTask(batch, has_query=False)` with them where the target has several parents.
        n_sequences, seed: of the sequences drawn, with their exact target laws, for the test for information.
        min_weight: least mean attention of an edge.
        level: family-wise error of the test for information.

    Returns:
        A graph over ``n_ctx`` positions and the target. Attention proposes edges, one a row and head; the test for
        information, computed from the sequences and their targets without the model, takes roots out. A head whose
        attention no prediction depends on has no edges. Edges carry "weight", "margin", "head", "information",
        "information_share", "p_value" and "decided_by"; its field ``candidates`` lists every `CandidateEdge`, the
        rejected ones with their reason; ``from_attention`` is the graph by attention alone, and ``evidence`` says in
        words what decided. Without task and batch, uniform random tokens are used and roots cannot be told apart:
        attention alone decides, and ``roots_tested`` is False.
        Half of a row's attention is little in the first rows: of untrained models about every second has 0 -> 1 if that
        is an edge, and few have others (4% to 8% of all edges, none false).

        Of a task without a query, whose last row stands for the target's parents, the graph is the union over heads of
        the entries that `recover_graph` confirms on the sequences; an edge that several heads carry has the strongest
        one as "head", and ``carriers`` names all of them. ``heads`` says what each head carries (`HeadReport`), and
        ``inferred`` what the sequences show and none does: more parents than heads, for one.

    >>> found = cc.extract_graph(model, task, n_sequences=2000)
    >>> cc.compare_graphs(task.graph, found).exact
    True
    """
    if not 0 < min_weight <= 1:
        raise ValueError(f"min_weight must lie in (0, 1]: got {min_weight}")
    has_query = task is None or task.has_query
    if batch is None and task is not None:
        check_model(model, task.d_vocab, task.n_ctx)
        batch = task.sample_at_most(n_sequences, seed=seed)
    if batch is None:
        check_model(model, model.cfg.d_vocab, model.cfg.n_ctx)
        generator = torch.Generator().manual_seed(seed)
        tokens = torch.randint(model.cfg.d_vocab, (2048, model.cfg.n_ctx), generator=generator)
    else:
        batch.check(model.cfg.d_vocab)
        check_model(model, batch.target_probs.shape[1], batch.tokens.shape[1])
        tokens = batch.tokens[:4096]
    n_ctx, attention = tokens.shape[1], mean_attention(model, tokens)[0]
    heads = [head for layer, head in live_heads(model) if layer == 0]
    unused = _unused_heads(model, tokens[:_TRIED], heads)
    used = [head for head in heads if head not in unused]
    proposals = propose(attention, heads, has_query)
    evidence = "attention alone: roots were not tested"
    if batch is not None:
        evidence = f"attention, and information in {len(batch):,} sequences (computed without the model)"
    graph = ExtractedGraph(target=n_ctx, roots_tested=batch is not None, evidence=evidence)
    graph.from_attention = nx.DiGraph(target=n_ctx)
    for either in (graph, graph.from_attention):
        either.add_nodes_from(range(n_ctx + 1))
        if has_query:
            either.add_edge(n_ctx - 1, n_ctx)
    graph.heads, graph.inferred, graph.attached = (), (), attachments(model)
    if batch is None:
        found = [(p, NOT_TESTED) for p in proposals]
    elif has_query:
        found = by_information(proposals, estimate_gradient(batch.tokens, batch.target_probs), level)
    else:
        data = recover_graph(batch, max_parents=max(2, len(used)), level=level)
        found = by_recovery(proposals, data)
    graph.candidates = tuple(judge(p, evidence, min_weight, p.head in used) for p, evidence in found)
    if batch is not None and not has_query:
        attended = {(c.parent, c.child) for c in graph.candidates if c.accepted}
        graph.heads = report_heads(graph.candidates, attention, used)
        graph.inferred = tuple(sorted({*data.graph.edges} - attended, key=lambda edge: (edge[1], edge[0])))
    for p in sorted((p for p in proposals if not p.why_unclear(min_weight)), key=lambda p: p.weight):
        graph.from_attention.add_edge(p.parent, p.child, weight=p.weight, margin=p.margin, head=p.head)
    for edge in sorted((c for c in graph.candidates if c.accepted), key=lambda c: c.weight):
        facts = ("weight", "margin", "head", "information", "information_share", "p_value", "decided_by")
        graph.add_edge(edge.parent, edge.child, **{fact: getattr(edge, fact) for fact in facts})
    return graph


@torch.no_grad()
def _unused_heads(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"], heads: Sequence[int]) -> list[int]:
    """The heads of layer 0 whose attention no prediction depends on: uniform attention in its place changes none."""
    tokens, uniform = tokens.to(model.W_U.device), torch.ones(tokens.shape[1], tokens.shape[1]).tril()
    uniform /= uniform.sum(dim=-1, keepdim=True)

    def predict(head: int | None) -> Tensor:
        def flatten(pattern: Tensor, hook: object) -> Tensor:
            pattern = pattern.clone()
            if head is not None:
                pattern[:, head] = uniform.to(pattern)
            return pattern

        with model.hooks(fwd_hooks=[("blocks.0.attn.hook_pattern", flatten)]):
            return log_probs(model, tokens)

    untouched = predict(None)
    return [head for head in heads if float((predict(head) - untouched).abs().max()) <= _NO_CHANGE]


@check_arguments
def edge_auroc(score: Float[Tensor, "query_pos key_pos"], true: nx.DiGraph, *, children_only: bool = False) -> float:
    """The probability that a true edge scores above another causal entry (ties count half).

    Entries (i, j), j <= i, of all rows but a query's, which nothing reads: without a query the last row stands for
    the target's parents (`attention_cells`) and counts too. NaN without an edge among them, or if one of them is NaN.
    With `children_only` the rows of roots are left out: there, a trained model may make use of entries that are no
    edges, because a root's token tells about the transition matrix too.

    >>> edge_auroc(torch.diag(torch.ones(3), -1), cc.chain_graph(4))
    1.0
    """
    n_ctx = n_ctx_of(true)
    if score.shape != (n_ctx, n_ctx):
        raise ValueError(f"scores must cover the graph's {n_ctx} positions, [n_ctx, n_ctx]: got {list(score.shape)}")
    is_edge, possible = edge_entries(true)
    if children_only:
        possible &= is_edge.any(axis=1, keepdims=True)
    return auroc(score.double().numpy()[possible], is_edge[possible])
