"""Names that stood elsewhere until 0.1, the rooms they are in now; to be removed with 0.2."""

ROOMS = {
    "classical": "chow_liu_tree pooled_mutual_information",
    "discovery": "CandidateEdge ExtractedGraph HeadReport Position RecoveredGraph",
    "films": "PredictorDistances SequenceAttention named_predictors sequence_attention",
    "generalization": "prediction_errors",
    "graphs": "GraphRecovery graph_from_digraph graph_parents has_query parents_of validate_graph",
    "heads": "HeadScores HeadTable copying_score induction_mask parent_mask",
    "information": "GradientComparison Information estimate_gradient finite_context_gradient",
    "interventions": "ABLATION_METHODS AblationResult KNOCK_OUT_METHODS KnockOut METRICS PatchingResult",
    "models": (
        "Layout Slot attention_block disentangle entangle live_heads ordinary_transformer plant_decoy slots warm_start"
    ),
    "recording": "Snapshot watch_attention",
    "tasks": (
        "ReferenceLosses best_unigram_loss bounded_below cross_entropy edge_posterior exact_bayes subset_loss "
        "subset_losses subset_predictor unigram"
    ),
    "training": (
        "CheckpointError DivergenceError TrainingHealth default_stages restore_checkpoint take_snapshot training_health"
    ),
}
RENAMED = {
    "KERNEL_FAMILIES": "tasks.MATRIX_FAMILIES",
    "PredictorFilm": "films.PredictorRecorder",
    "Scrubbed": "interventions.ScrubbingResult",
    "SequenceFilm": "films.SequenceRecorder",
    "WorstKernel": "generalization.WorstMatrix",
    "kernel_family": "tasks.matrix_family",
    "score_gradient_of": "information.through_softmax",
    "worst_kernel": "generalization.worst_matrix",
}
MOVED = {name: f"{room}.{name}" for room, names in ROOMS.items() for name in names.split()} | RENAMED
