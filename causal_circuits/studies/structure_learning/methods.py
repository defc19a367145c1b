"""The methods that `structure_learning` compares: each takes one table of sequences and names edges.

Every method is given the same table: tokens, the query among them, and one sampled next token a sequence,
the label; two are run once more with the exact law in the label's place, and say so in their names. A method *proposes*
one earlier position for each position (or, for trees and skeletons, its edges) and *accepts* those proposals that pass
its own test.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import networkx as nx
import numpy as np
import scipy  # type: ignore[import-untyped]  # its parts are imported with their first use
import torch

import causal_circuits as cc
from causal_circuits.statistics import holm
from causal_circuits.studies.algorithm_1 import FULL_ADAM, empty_model, run_stage

Edges = set[tuple[int, int]]
GRADIENT, GRADIENT_LAWS = "one gradient, labels", "one gradient, exact laws"
ATTENTION, ATTENTION_LAWS = "trained attention, labels", "trained attention, exact laws"
COVARIANCE = "covariance with query and label"
INFORMATION, INFORMATION_GIVEN = "mutual information", "mutual information given query and label"
CHOW_LIU, CHOW_LIU_NODES = "Chow-Liu", "Chow-Liu, query and label as nodes"
CHOW_LIU_GIVEN = "Chow-Liu given query and label"
PC, PC_NODES = "PC", "PC, query and label as nodes"
METHODS: tuple[str, ...] = (GRADIENT, GRADIENT_LAWS, COVARIANCE, ATTENTION, ATTENTION_LAWS, INFORMATION)
METHODS += (INFORMATION_GIVEN, CHOW_LIU, CHOW_LIU_NODES, CHOW_LIU_GIVEN, PC, PC_NODES)
# where positions have several parents: no position is a query, and the label depends on some of them
MATCHES, MATCHES_LAWS, LABEL_GIVEN = "matches, labels", "matches, exact laws", "mutual information given label"
ONE_MATCH, PC_LABEL = "covariance with one match and label", "PC, label as node"
METHODS_OF_SEVERAL: tuple[str, ...] = (MATCHES, MATCHES_LAWS, ONE_MATCH, ATTENTION, ATTENTION_LAWS, INFORMATION)
METHODS_OF_SEVERAL += (LABEL_GIVEN, CHOW_LIU, PC, PC_LABEL)
MISSING = (
    "PC is left out: causal-learn is not installed; pip install -c constraints.txt -e '.[structure]' brings it. "
    "Everything else runs."
)


@dataclass(frozen=True)
class Found:
    """What a method makes of the data: proposals, the graph of those it accepts, and its time."""

    proposed: Edges
    graph: nx.DiGraph
    seconds: float


@dataclass(frozen=True)
class Table:
    """What all methods are given."""

    laws: cc.Batch  # sequences with the law of the next token
    labels: cc.Batch  # the same sequences with one next token each, drawn from its law
    k: int = 1  # parents of a position; with one the last token is a query, with more it is a position like any other

    @classmethod
    def of(cls, batch: cc.Batch, seed: int, k: int = 1) -> "Table":
        generator = torch.Generator().manual_seed(seed)
        labels = torch.multinomial(batch.target_probs, 1, generator=generator)[:, 0]
        drawn = torch.nn.functional.one_hot(labels, batch.target_probs.shape[1]).float()
        return cls(batch, cc.Batch(batch.tokens, drawn), k)

    def __getitem__(self, rows: slice) -> "Table":
        return Table(self.laws[rows], self.labels[rows], self.k)

    @property
    def d_vocab(self) -> int:
        return self.labels.target_probs.shape[1]

    @property
    def positions(self) -> torch.Tensor:
        """The tokens of the positions that may have edges: a query is left out."""
        return self.labels.tokens[:, :-1] if self.k == 1 else self.labels.tokens

    @property
    def label(self) -> torch.Tensor:
        return self.labels.target_probs.argmax(dim=1)

    @property
    def query_and_label(self) -> torch.Tensor:
        """[sequence, 2]; the label alone, [sequence, 1], where there is no query."""
        columns = [self.labels.tokens[:, -1], self.label] if self.k == 1 else [self.label]
        return torch.stack(columns, dim=1)

    @property
    def all_variables(self) -> torch.Tensor:
        """Positions, query and label as columns."""
        return torch.cat([self.positions, self.query_and_label], dim=1)


def find_edges(method: str, table: Table, *, level: float, steps: int, seed: int) -> Found:
    began = time.perf_counter()
    proposed, accepted = _run(method, table, level, steps, seed)
    n_ctx = table.labels.tokens.shape[1]
    graph = nx.DiGraph([*([(n_ctx - 1, n_ctx)] if table.k == 1 else []), *accepted])
    graph.add_nodes_from(range(n_ctx + 1))
    return Found(proposed, graph, time.perf_counter() - began)


def _run(method: str, table: Table, level: float, steps: int, seed: int) -> tuple[Edges, Edges]:
    if method in (GRADIENT, GRADIENT_LAWS, MATCHES, MATCHES_LAWS):
        return by_recover_graph(table.labels if method in (GRADIENT, MATCHES) else table.laws, level, table.k)
    if method == ONE_MATCH:
        return by_one_match(table, level)
    if method in (ATTENTION, ATTENTION_LAWS):
        data = table.labels if method == ATTENTION else table.laws
        return by_attention(data, level, steps, seed) if table.k == 1 else by_several_heads(data, level, table.k)
    if method == COVARIANCE:
        return by_covariance(table, level)
    if method in (INFORMATION, INFORMATION_GIVEN, LABEL_GIVEN):
        return by_information(table, level, given=method != INFORMATION)
    n_positions = table.positions.shape[1]
    if method in (PC, PC_NODES, PC_LABEL):
        columns, pc = table.positions if method == PC else table.all_variables, load_pc(table.k)
        if pc is None:
            raise ImportError(MISSING)
        edges = pc(columns.numpy(), level)
    elif method == CHOW_LIU_GIVEN:
        edges = set(cc.classical.chow_liu_tree(information_given_query_and_label(table)).edges)
    else:
        columns = table.positions if method == CHOW_LIU else table.all_variables
        edges = set(cc.classical.chow_liu_tree(cc.classical.pooled_mutual_information(columns, table.d_vocab)).edges)
    edges = {(parent, child) for parent, child in edges if child < n_positions}  # none to the query or the label
    return edges, edges


def by_recover_graph(data: cc.Batch, level: float, k: int) -> tuple[Edges, Edges]:
    """What `recover_graph` makes of the table: every position's candidates, and the parents it is sure of."""
    found = cc.recover_graph(data.tokens, data.target_probs, level=level, max_parents=k).positions
    candidates = {p.position: (p.candidate,) if isinstance(p.candidate, int) else p.candidate or () for p in found}
    return {(j, i) for i, own in candidates.items() for j in own}, {(j, p.position) for p in found for j in p.parents}


def by_attention(data: cc.Batch, level: float, steps: int, seed: int) -> tuple[Edges, Edges]:
    """The rows' maxima of layer 0's attention after stage 1 of Algorithm 1 on this table; roots told by information.

    The table is all that training sees, epoch after epoch.
    """
    task = cc.BatchTask(data)
    model = empty_model(FULL_ADAM, task)
    run_stage(1, FULL_ADAM, model, task, steps, batch_size=512, seed=seed)
    found = cc.extract_graph(model, batch=data, level=level)
    proposed = {(candidate.parent, candidate.child) for candidate in found.candidates}
    return proposed, set(found.edges) - {(task.n_ctx - 1, task.n_ctx)}


def by_several_heads(data: cc.Batch, level: float, k: int) -> tuple[Edges, Edges]:
    """Every row's maximum in each of k heads of layer 0 that the default recipe trained on this table, over and over.

    Accepted are those that `extract_graph` confirms on it.
    """
    task = cc.BatchTask(data, has_query=False)
    model = cc.disentangled_transformer(task.d_vocab, task.n_ctx, (k, 1))
    cc.train(model, task, progress=False)
    pattern = cc.discovery.mean_attention(model, data.tokens)[0]
    proposed = set().union(*(row_maxima(head.numpy()) for head in pattern))
    found = cc.extract_graph(model, task, batch=data, level=level)
    return proposed, {edge for edge in found.edges if edge[1] < task.n_ctx}


def by_one_match(table: Table, level: float) -> tuple[Edges, Edges]:
    """The first-order statistic: Cov(1[x_i = label], 1[x_j = x_a]), for the position a at which a row has its largest.

    The k largest entries of each row; kept if they are significant (as `by_covariance`, and over all a).
    """
    tokens, n = table.positions.numpy(), len(table.positions)
    child = (tokens == table.label.numpy()[:, None]).astype(np.float32)
    child -= child.mean(axis=0)
    n_ctx = tokens.shape[1]
    z = np.full((n_ctx, n_ctx, n_ctx), -np.inf)  # [a, i, j]
    for a in range(n_ctx):
        key = (tokens == tokens[:, [a]]).astype(np.float32)
        key -= key.mean(axis=0)
        spread = np.sqrt(n * np.outer(child.var(axis=0), key.var(axis=0)))
        z[a] = np.divide(child.T @ key, spread, out=np.full((n_ctx, n_ctx), -np.inf), where=spread > 0)
    largest = z.max(axis=0)
    proposed = row_maxima(largest, table.k)
    return proposed, proposed & significant(np.minimum(1.0, n_ctx * scipy.stats.norm.sf(largest)), level)


def by_covariance(table: Table, level: float) -> tuple[Edges, Edges]:
    """The earlier position j with the largest Cov(1[x_i = label], 1[x_j = query]); kept if it is significant.

    It is what the gradient computes to first order, by counting. The test is that of a correlation (normal, one-sided):
    it asks whether the two are related, not whether j is the parent.
    """
    query, label = table.query_and_label.T.numpy()
    positions = table.positions.numpy()
    child, key = (positions == label[:, None]).astype(float), (positions == query[:, None]).astype(float)
    child, key = child - child.mean(axis=0), key - key.mean(axis=0)
    covariance = child.T @ key / len(positions)
    spread = np.sqrt(np.outer(child.var(axis=0), key.var(axis=0)))
    correlation = np.divide(covariance, spread, out=np.zeros_like(covariance), where=spread > 0)
    proposed = row_maxima(covariance)
    return proposed, proposed & significant(scipy.stats.norm.sf(correlation * len(positions) ** 0.5), level)


def by_information(table: Table, level: float, *, given: bool) -> tuple[Edges, Edges]:
    """The k earlier positions with the largest mutual information; kept if the G-test rejects independence.

    With `given`, information and test are those given the query's token, if there is one, and the label.
    """
    if given:
        columns = table.query_and_label.shape[1]
        information, n_strata = information_given_query_and_label(table), table.d_vocab**columns
    else:
        information, n_strata = cc.classical.pooled_mutual_information(table.positions, table.d_vocab), 1
    proposed, degrees = row_maxima(information, table.k), n_strata * (table.d_vocab - 1) ** 2
    return proposed, proposed & significant(scipy.stats.chi2.sf(2 * len(table.positions) * information, degrees), level)


def information_given_query_and_label(table: Table) -> np.ndarray:
    """I(x_i; x_j | query, label) of every pair of positions (given the label alone without a query), plug-in, nats."""
    d_vocab, n = table.d_vocab, len(table.positions)
    stratum = table.query_and_label[:, 0] * d_vocab + table.query_and_label[:, -1]
    groups = [table.positions[stratum == value] for value in torch.unique(stratum)]
    return np.sum([len(group) / n * cc.classical.pooled_mutual_information(group, d_vocab) for group in groups], axis=0)


def pairs(n_positions: int) -> list[tuple[int, int]]:
    """(j, i) for every j < i."""
    return [(j, i) for i in range(n_positions) for j in range(i)]


def significant(p_values: np.ndarray, level: float) -> Edges:
    """The pairs whose p-value, Holm-adjusted over all pairs (maxima are picked from them), is below the level."""
    tested = pairs(len(p_values))
    adjusted = holm([p_values[i, j] for j, i in tested])
    return {pair for pair, p in zip(tested, adjusted, strict=True) if p < level}


def row_maxima(values: np.ndarray, k: int = 1) -> Edges:
    """(j, i) for every position i >= k and the k earlier j with the largest entries of row i."""
    order = {child: np.argsort(-values[child, :child], kind="stable") for child in range(k, len(values))}
    return {(int(j), child) for child, largest in order.items() for j in largest[:k]}


def load_pc(k: int = 1) -> Callable[[np.ndarray, float], Edges] | None:
    """PC's skeleton by causal-learn, or None if it is not installed.

    In a forest any two positions that share no edge are independent given at most one other, so conditioning sets of
    one suffice; with k parents those of k (its parents separate a position from what came before). Edges point forward:
    the order of positions is known. Holm's correction has no place in PC, whose level is that of each test; the level
    asked for is divided by the number of pairs.
    """
    try:
        from causallearn.utils.cit import CIT
        from causallearn.utils.PCUtils.SkeletonDiscovery import skeleton_discovery
    except ImportError:
        return None

    def pc(tokens: np.ndarray, level: float) -> Edges:
        n_ctx = tokens.shape[1]
        n_pairs = n_ctx * (n_ctx - 1) / 2
        skeleton = skeleton_discovery(tokens, level / n_pairs, CIT(tokens, "chisq"), show_progress=False, max_k=k)
        linked = skeleton.G.graph != 0
        return {(j, i) for j, i in pairs(n_ctx) if linked[i, j] or linked[j, i]}

    return pc
