"""Studies: a module a claim, with a `Config` whose fields are the flags. `running.run` runs one.

>>> cc.studies.two_stage.Config(lengths=(8, 16)).lengths
(8, 16)
"""

import lazy_loader

NAMES = (
    "circuit_proof",
    "discovery_benchmark",
    "causal_graph",
    "generalization",
    "gradient_information",
    "induction_head",
    "learnability",
    "multi_head",
    "recover_graph",
    "reproduce_paper",
    "selective_induction",
    "structure_learning",
    "sample_complexity",
    "statistical_induction",
    "two_stage",
    "unlearned_edges",
    "interventional_data",
    "zoo",
)

__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submodules=NAMES)
