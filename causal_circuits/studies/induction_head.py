"""A two-layer transformer trained on in-context Markov chains learns an induction head."""

from dataclasses import dataclass

import networkx as nx

import causal_circuits as cc
from causal_circuits.studies.recover_and_prove import RecoverAndProve


@dataclass(frozen=True, kw_only=True)
class Config(RecoverAndProve):
    """A two-layer transformer trained on in-context Markov chains learns an induction head.

    Trains a disentangled HookedTransformer, all trained weights zero at the start, on sequences in which every token
    depends on the one before, through a transition matrix that is new in every sequence; reads the chain back out of
    layer 0's attention (alone, and with a test of every edge for information in fresh sequences); finds the
    previous-token head and the induction head; and proves the circuit by ablating each head and cutting each attention
    entry. With --warm-start --steps 2000 layer 1's match and the read-out are written in before training: sharper, in
    half the steps, but only layer 0 is learned from nothing.

        python analyses/induction_head.py                    # the paper's setting: 10 tokens, context 20
        python analyses/induction_head.py --d-vocab 5 --n-ctx 40

    The folder gets report.html (look at this), results.json, figures/, model/ and record/.
    """

    d_vocab: int = 10  #: number of tokens
    n_ctx: int = 20  #: context length, query included

    def make_graph(self) -> nx.DiGraph:
        return cc.chain_graph(self.n_ctx)
