"""causal_circuits: watch a transformer learn a causal graph, and prove that it did.

A plugin on TransformerLens for "How Transformers Learn Causal Structure with Gradient Descent" (Nichani, Damian & Lee,
ICML 2024). In the order in which data flows::

    graphs -> tasks -> models -> training -> heads / discovery / interventions / information -> figures
"""

from causal_circuits.discovery import CandidateEdge, edge_auroc, extract_graph, mean_attention
from causal_circuits.graphs import (
    GraphRecovery,
    chain_graph,
    compare_graphs,
    graph_from_digraph,
    graph_from_parents,
    graph_parents,
    has_query,
    latent_edges,
    ngram_graph,
    pairs_graph,
    parents_of,
    random_forest,
    validate_graph,
)
from causal_circuits.heads import HeadScores, copying_score, detect_induction_heads, induction_mask, parent_mask
from causal_circuits.information import (
    Information,
    chi_squared_information,
    estimate_gradient,
    predicted_gradient,
    score_gradient_of,
)
from causal_circuits.interventions import (
    ABLATION_METHODS,
    AblationResult,
    KnockOut,
    PatchingResult,
    ablate_heads,
    knock_out_edges,
    patch_activations,
)
from causal_circuits.models import (
    Layout,
    Slot,
    attention_block,
    disentangled_transformer,
    live_heads,
    load_model,
    log_probs,
    plant_circuit,
    reduced_transformer,
    save_model,
    slots,
    warm_start,
)
from causal_circuits.recording import RecordAt, Snapshot, TrainingRecord, watch_attention
from causal_circuits.tasks import (
    Batch,
    InContextTask,
    ReferenceLosses,
    best_unigram_loss,
    cross_entropy,
    edge_posterior,
    exact_bayes,
    reference_losses,
    unigram,
)
from causal_circuits.training import Stage, TrainConfig, default_stages, evaluate, take_snapshot, train

__version__ = "0.1.0"

__all__ = [name for name in dir() if not name.startswith("_")]
