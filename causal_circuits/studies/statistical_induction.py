"""Statistical induction heads: a transformer learns to predict Markov chains in phases, and why the phases come."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from torch import Tensor

import causal_circuits as cc
from causal_circuits import figures
from causal_circuits.pages import Check, Section
from causal_circuits.studies.study import Cell, Report, Study, at_least, grid, one_of
from causal_circuits.studies.tables import curves_of

Row = dict[str, Any]
SHOWN = (
    *("prior", "d_vocab", "seed", "phases", "uniform from", "unigram from", "bigram from", "L0H0", "L1H0", "truth"),
    *("truth with unigram", "without L0H0", "without L1H0", "gradient first at"),
)
N_TEST = 256
CLEARLY = 2 / 3  # of the second nearest predictor's divergence; chosen on seeds 0 to 4
PRIORS = ("dirichlet", "doubly stochastic", "independent")


@dataclass(frozen=True, kw_only=True)
class Config(Study):
    """Trained on Markov chains, a two-layer model predicts like all tokens alike, then like counts, then in context.

    "Statistical induction heads" (Edelman et al. 2024, arXiv 2402.11004) in the paper's disentangled transformer: two
    layers of one head, relative positions, the loss at every position, plain SGD from zero. The predictor that the
    model is clearly nearest to (Kullback-Leibler, below two thirds of any other's) goes from uniform to unigram to
    bigram, and bigram comes with a previous-token head and an induction head. Two other priors test the cause: where
    counting tokens tells nothing (doubly stochastic matrices) the unigram phase is missing, where the token before
    tells nothing (independent tokens) no head forms.

        python analyses/statistical_induction.py            # eight minutes on two cores
        python analyses/statistical_induction.py --quick    # one minute: shorter sequences, one seed
    """

    QUICK: ClassVar = {"d_vocab": (3,), "n_ctx": 20, "seeds": 1, "steps": 500}

    d_vocab: tuple[int, ...] = (2, 3)  #: numbers of tokens
    n_ctx: int = 50  #: length of the sequences
    prior: tuple[str, ...] = PRIORS  #: any of dirichlet, doubly stochastic, independent
    seeds: int = 5  #: independent trainings of each setting
    steps: int = 1500  #: of SGD
    learning_rate: float = 2.0  #: of SGD
    batch_size: int = 64  #: sequences a step

    def check(self) -> None:
        one_of(PRIORS, prior=self.prior)
        at_least(2, d_vocab=self.d_vocab)
        at_least(5, n_ctx=self.n_ctx)
        at_least(1, seeds=self.seeds, steps=self.steps, batch_size=self.batch_size)

    def cells(self) -> list[Cell]:
        axes = {"prior": self.prior, "d_vocab": self.d_vocab, "seed": range(self.seed, self.seed + self.seeds)}
        cells = grid(measure_training, axes, **self.flags("n_ctx", "steps", "learning_rate", "batch_size"))
        return [replace(cell, progress=True) for cell in cells]

    def report(self, rows: Mapping[str, Row]) -> Report:
        table = pd.DataFrame([{key: row[key] for key in SHOWN} for row in rows.values()])
        states = pd.DataFrame(
            {"prior": row["prior"], "d_vocab": row["d_vocab"], "at": state["step"] + 1, **state}
            for row in rows.values()
            for state in row["states"]
        )
        of = {prior: table[table.prior == prior] for prior in self.prior}
        phases = {f"phases {prior}".replace(" ", "_"): plot_phases(states, prior) for prior in self.prior}
        return Report(
            title="Statistical induction heads",
            checks=[check for prior in self.prior for check in checks(prior, of[prior])],
            results={"trainings": list(rows.values())},
            sections=[
                Section(
                    "Phases",
                    "The lowest line is the predictor that the model is most like. Rows of the transition matrix are "
                    "drawn freely (dirichlet), so that all tokens are as frequent (doubly stochastic), or all alike: "
                    "the token before then tells nothing (independent). In the table a row a training, with the "
                    "steps at which each predictor became the nearest.",
                    figures=phases,
                    table=table,
                ),
                Section(
                    "The previous-token head",
                    "Compare with the step at which the bigram line falls; a flat line is no such head.",
                    figures={"previous_token": plot_attention(states)},
                ),
            ],
        )


def measure_training(
    prior: Any, d_vocab: int, seed: int, n_ctx: int, steps: int, learning_rate: float, batch_size: int, progress: bool
) -> Row:
    """One training, measured on the way; at its end its heads, and what is lost without each."""
    task = cc.tasks.MarkovTask(n_ctx=n_ctx, d_vocab=d_vocab, prior=prior)
    test, model = task.sample(N_TEST, seed=(seed, 7)), cc.disentangled_transformer(d_vocab, n_ctx)
    predicted = cc.tasks.next_token_predictors(test.tokens, d_vocab)
    film = cc.films.PredictorRecorder(test, {**predicted, "truth": test.target_probs})
    recipe = {"optimizer": "sgd", "schedule": "constant", "batch_size": batch_size, "seed": seed}
    config = cc.TrainConfig.joint(steps, learning_rate, relative_positions=True, **recipe)
    at = cc.RecordAt(steps=(*range(0, 40, 4), *range(50, steps, 50), steps), layers=(0,), score_gradients=False)
    record = cc.train(model, task, config, record=at, on_record=film, progress=progress)
    assert record.attention is not None
    seen = film.result().to_frame().to_dict("records")
    for state, attention in zip(seen, record.attention, strict=True):
        state["previous"] = float(attention[0, 0].diagonal(-1).mean())
    nearest = [nearest_of({name: state[name] for name in predicted}) for state in seen]
    heads = cc.detect_induction_heads(model, task)
    return {
        "prior": prior,
        "d_vocab": d_vocab,
        "seed": seed,
        "phases": " > ".join(dict.fromkeys(name for name in nearest if name)),
        **{f"{name} from": first_step(seen, nearest, name) for name in predicted},
        **{f"L{head.layer}H0": head.role for head in heads},
        **at_the_end(model, test.last, {name: probs[:, -1] for name, probs in predicted.items()}),
        **gradient_at_the_start(task, seed),
        "states": seen,
    }


def at_the_end(model: cc.models.HookedTransformer, test: cc.Batch, predicted: Mapping[str, Tensor]) -> Row:
    """KL(truth || ...) after the last token: of the model, of predictors, of the model without either head."""
    truth = test.target_probs
    entropy = float(cc.tasks.cross_entropy(truth, truth).mean())
    cut = {f"without L{layer}H0": cc.ablate_heads(model, test, [(layer, 0)]) for layer in (0, 1)}
    return {
        "truth": float(cc.evaluate(model, test).mean()) - entropy,
        **{
            f"truth with {name}": float(cc.tasks.cross_entropy(probs, truth).mean()) - entropy
            for name, probs in predicted.items()
        },
        **{name: result.loss - entropy for name, result in cut.items()},
    }


def gradient_at_the_start(task: cc.tasks.MarkovTask, seed: int) -> Row:
    """Minus the gradient in layer 0's scores at uniform attention, summed by distance: where layer 0 will look.

    As in Algorithm 1 (Nichani et al. 2024), layer 1 matches the query's token with copied tokens already.
    """
    model = cc.models.warm_start(cc.disentangled_transformer(task.d_vocab, task.n_ctx), 1.0)
    snapshot = cc.training.take_snapshot(model, task.sample(N_TEST, seed=(seed, 8)))
    assert snapshot.score_gradients is not None
    gradient = snapshot.score_gradients[0, 0]
    by_distance = [float(gradient.diagonal(-distance).sum()) for distance in range(task.n_ctx)]
    return {"gradient first at": int(np.argmax(by_distance)), "gradient by distance": by_distance[:10]}


def nearest_of(distances: Mapping[str, float]) -> str | None:
    """The predictor whose divergence is below two thirds of either other's; None where two are about as near."""
    name, second = sorted(distances, key=distances.__getitem__)[:2]
    return name if distances[name] < CLEARLY * distances[second] else None


def first_step(states: list[Row], nearest: list[str | None], name: str) -> int | None:
    return next((state["step"] for state, near in zip(states, nearest, strict=True) if near == name), None)


def checks(prior: str, of: pd.DataFrame) -> list[Check]:
    heads = (of.L0H0 == "previous-token") & (of.L1H0 == "induction")
    last = f"after the last token {of.truth.mean():.4f} nats from the truth (the unigram predictor: "
    last += f"{of['truth with unigram'].mean():.4f}; without L0H0: {of['without L0H0'].mean():.4f})"
    found = f"previous-token and induction head in {heads.sum()} of {len(of)}; {last}"
    gradient = f"the largest at distance 1 in {(of['gradient first at'] == 1).sum()} of {len(of)}"
    expected = {"dirichlet": "uniform > unigram > bigram", "doubly stochastic": "uniform > bigram"}.get(prior)
    if expected is None:
        return [
            Check(
                not of.phases.str.contains("bigram").any() and not heads.any(),
                "Where the token before tells nothing, no induction head forms, and the model stays unigram",
                f"{phases_of(of)}; {found}",
            )
        ]
    proof = (of["without L0H0"] > of["truth with unigram"] - 0.01) & (of.truth < of["truth with unigram"])
    return [
        Check(bool((of.phases == expected).all()), f"{prior}: the model is nearest to {expected}", phases_of(of)),
        Check(bool(heads.all() and proof.all()), f"{prior}: the last phase is an induction head reading L0H0", found),
        Check(bool((of["gradient first at"] == 1).all()), f"{prior}: the first gradient says where", gradient),
    ]


def phases_of(of: pd.DataFrame) -> str:
    """The phases of all trainings with a prior, and when the last began."""
    counts = ", ".join(f"{phases}: {n}" for phases, n in of.phases.value_counts().items())
    began = of["bigram from"].dropna()
    when = f"; bigram from step {began.min():.0f} to {began.max():.0f}" if len(began) else ""
    return f"{counts} of {len(of)} trainings{when}"


def plot_phases(states: pd.DataFrame, prior: str) -> Any:
    of, curves = states[states.prior == prior], dict[str, Any]()
    for name in ("uniform", "unigram", "bigram"):
        curves |= curves_of(of, "at", name, f"{name}, d_vocab {{d_vocab}}")
    label = "KL(predictor || model), nats"
    return figures.plot_curves(curves, xlabel="step + 1", ylabel=label, title=prior, group_size=of.d_vocab.nunique())


def plot_attention(states: pd.DataFrame) -> Any:
    curves = curves_of(states, "at", "previous", "{prior}, d_vocab {d_vocab}")
    label = "layer 0's attention to the token before"
    return figures.plot_curves(curves, xlabel="step + 1", ylabel=label, group_size=states.d_vocab.nunique())
