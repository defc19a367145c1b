"""What `circuit_proof` measures: check, search, prove, compare, scrub, and hold to the graph."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Literal

import scipy  # type: ignore[import-untyped]
import torch

import causal_circuits as cc
from causal_circuits import circuits

ENUMERATED, ENUMERATED_OF_SEVERAL = 19, 17  # edges at most; of several heads the circuits cost more
KEEPS = 0.99  # the circuit is the smallest that keeps this share of what the best circuit gains
COUNTERFACTUAL: Final = "mean"
RECORDED = 20  # steps, dense at the start
SCRUBBED_WHERE: tuple[Literal["children", "everywhere"], ...] = ("children", "everywhere")
RECIPES = {
    "zero": lambda steps, seed: cc.TrainConfig(cc.training.default_stages(steps), seed=seed),
    "warm": lambda steps, seed: cc.TrainConfig.warm(steps, seed=seed),
    "adam": lambda steps, seed: cc.TrainConfig.joint(steps, 0.1, seed=seed),  # often predicts without the graph
}


@dataclass(frozen=True)
class Evidence:
    """Everything that was found out about one model."""

    model: cc.models.HookedTransformer
    proved_on: cc.Batch
    seed: int
    checks: tuple[circuits.SelfCheck, ...]
    frontier: circuits.Frontier
    proof: circuits.CircuitProof
    discoveries: list[circuits.Discovery]
    rankings: list[circuits.Ranking]
    entries: list[tuple[circuits.Discovery, circuits.GraphScores]]  # by exact knock-outs first
    knock_out: cc.interventions.KnockOut
    scrubbed: list[cc.interventions.ScrubbingResult]
    edge_posterior: float

    @property
    def encodes_graph(self) -> bool:
        """Whether in nearly every row with parents the entries that matter most are the parents."""
        return self.entries[0][1].exact_parent_rate >= 0.9

    @property
    def whole(self) -> circuits.CircuitModel:
        """The model as a function of its circuit, on the sequences of the proof."""
        return circuits.circuit_model(self.model, self.proved_on, counterfactual=COUNTERFACTUAL, seed=self.seed)


def make_task(parents: list, d_vocab: int, alpha: float) -> cc.InContextTask:
    return cc.InContextTask(cc.graph_from_parents(parents), d_vocab=d_vocab, alpha=alpha)


def measure_model(
    task: Mapping[str, Any], n_sequences: int, seed: int, folder: str, weights: str
) -> dict[str, Evidence | None]:
    """The evidence on a saved model; `weights` is their digest, so that other weights are measured again."""
    return {"evidence": find_evidence(cc.load_model(folder), make_task(**task), n_sequences, seed), "formation": None}


def train_and_measure(
    task: Mapping[str, Any], n_sequences: int, seed: int, recipe: str, steps: int, own_seed: int, prove: bool
) -> dict[str, Any]:
    """Train one model, with what every edge did on the way; for one of them, the evidence."""
    own = make_task(**task)
    model = cc.disentangled_transformer(own.d_vocab, own.n_ctx)
    formation = circuits.watch_formation(
        model,
        own,
        RECIPES[recipe](steps, own_seed),
        record=cc.RecordAt(n_log_spaced=RECORDED),
        batch=own.sample(1024, seed=(seed, 4)),
        counterfactual=COUNTERFACTUAL,
        seed=seed,
        progress=False,
    )
    return {"evidence": find_evidence(model, own, n_sequences, seed) if prove else None, "formation": formation}


def train_several_heads(task: Mapping[str, Any], n_sequences: int, seed: int) -> dict[str, Evidence | None]:
    """A head of layer 0 for each of the target's parents, trained by the default recipe, and the evidence."""
    own = make_task(**task)
    model = cc.disentangled_transformer(own.d_vocab, own.n_ctx, (len(own.target_parents), 1))
    cc.train(model, own, progress=False)
    return {"evidence": find_evidence(model, own, n_sequences, seed), "formation": None}


def find_evidence(model: cc.models.HookedTransformer, task: cc.InContextTask, n_sequences: int, seed: int) -> Evidence:
    """Check, search, prove, compare, scrub, hold to the graph; searched on an eighth as many sequences, other ones."""
    proof, search = task.sample(n_sequences, seed=(seed, 3)), task.sample(n_sequences // 8, seed=(seed, 5))
    circuit_model = partial(circuits.circuit_model, model, counterfactual=COUNTERFACTUAL, seed=seed)
    small, parts = circuit_model(search), circuits.entry_model(model, proof, seed=seed)
    frontier = circuits.oracle_frontier(small, max_edges=ENUMERATED if task.has_query else ENUMERATED_OF_SEVERAL)
    discoveries = [circuits.discover(small, method, seed=seed) for method in circuits.METHODS]
    entries = [circuits.discover(parts, method, seed=seed) for method in circuits.METHODS]
    knock_out = cc.knock_out_edges(model, proof)
    heads = copying_heads(knock_out.attention, task)
    return Evidence(
        model=model,
        proved_on=proof,
        seed=seed,
        checks=circuits.self_checks(model, proof[:256], counterfactual=COUNTERFACTUAL, seed=seed),
        frontier=frontier,
        proof=circuits.prove_circuit(circuit_model(proof), frontier.masks[chosen_size(frontier)], seed=seed),
        discoveries=discoveries,
        rankings=[circuits.rank(small, found, frontier) for found in discoveries],
        entries=[(found, circuits.score_against_graph(parts.matrices(found.score), task.graph)) for found in entries],
        knock_out=knock_out,
        scrubbed=[
            cc.scrub_hypothesis(model, proof, task, claim, where=where, heads=heads, seed=seed)
            for where in SCRUBBED_WHERE
            for claim in ("copy", "match", "both")
        ],
        edge_posterior=task.bayes_loss(proof),
    )


def chosen_size(frontier: circuits.Frontier) -> int:
    """The smallest size that keeps `KEEPS` of what the best circuit gains over none."""
    cost = frontier.cost
    enough = cost <= cost[0] - KEEPS * (cost[0] - cost.min())
    return max(1, int(torch.nonzero(enough)[0]))


def copying_heads(attention: torch.Tensor, task: cc.InContextTask) -> list[int]:
    """The head of layer 0 for parent number 0, 1, ... of every row: those that attend to them most, together."""
    parents = {i: cc.graphs.parents_of(task.graph, i) for i in range(task.n_ctx)}
    if not task.has_query:
        parents[task.n_ctx - 1] = task.target_parents
    most = max(map(len, parents.values()))
    attended = torch.zeros(most, len(attention))
    for i, own in parents.items():
        for number, parent in enumerate(own):
            attended[number] += attention[:, i, parent]
    numbers, heads = scipy.optimize.linear_sum_assignment(-attended.numpy())
    return heads[numbers.argsort()].tolist()
