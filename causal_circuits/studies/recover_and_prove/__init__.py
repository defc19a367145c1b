"""Train, recover the graph, detect the heads, prove the circuit: what `induction_head` and `causal_graph` share."""

from causal_circuits.studies.recover_and_prove.study import RecoverAndProve as RecoverAndProve
