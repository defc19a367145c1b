"""Names that stood elsewhere until 0.1, the rooms they are in now, and what is gone; to be removed with 0.2."""

ROOMS = {
    "classical": "chow_liu_tree pooled_mutual_information",
    "discovery": "CandidateEdge ExtractedGraph HeadReport Position RecoveredGraph",
    "films": "PredictorDistances SequenceAttention named_predictors sequence_attention",
    "generalization": "prediction_errors",
    "graphs": "GraphRecovery graph_from_digraph graph_parents has_query parents_of validate_graph",
    "heads": "HeadScores HeadTable copying_score induction_mask parent_mask",
    "information": (
        "GradientComparison Information InformationEstimate closest_rivals "
        "edge_formation estimate_gradient estimate_information "
        "finite_context_gradient mutual_information score_gradient_of"
    ),
    "interventions": "ABLATION_METHODS AblationResult KNOCK_OUT_METHODS KnockOut METRICS PatchingResult ablate_slots",
    "models": (
        "Layout Slot attention_block disentangle entangle live_heads ordinary_transformer plant_decoy slots warm_start"
    ),
    "recording": "Snapshot watch_attention",
    "tasks": (
        "ReferenceLosses best_unigram_loss bounded_below cross_entropy edge_posterior exact_bayes subset_loss "
        "subset_losses subset_predictor unigram"
    ),
    "training": (
        "CheckpointError DivergenceError TrainingHealth TrainingPaused "
        "default_stages restore_checkpoint take_snapshot training_health"
    ),
}
RENAMED = {
    "Formation": "information.EdgeFormation",
    "KERNEL_FAMILIES": "tasks.MATRIX_FAMILIES",
    "PredictorFilm": "films.PredictorRecorder",
    "Rival": "information.RivalPosition",
    "Scrubbed": "interventions.ScrubbingResult",
    "SequenceFilm": "films.SequenceRecorder",
    "WorstKernel": "generalization.WorstMatrix",
    "kernel_family": "tasks.matrix_family",
    "worst_kernel": "generalization.worst_matrix",
}
MOVED = {name: f"{room}.{name}" for room, names in ROOMS.items() for name in names.split()} | RENAMED

_MATCHES = "cc.train starts from matches (cc.training.start_from_matches)"
_ORDER_K = "cc.information.match_gradient(task) says what training moves first"
GONE = {
    "ConditionalInformation": _ORDER_K,
    "HeadKeys": "cc.extract_graph(model, batch).carriers(parent, child) names the heads",
    "PairGain": _ORDER_K,
    "Turn": _MATCHES,
    "TurnConfig": "cc.TrainConfig.matched() is the recipe",
    "UncarriedParent": "cc.extract_graph(model, batch).inferred lists edges that no head attends to",
    "conditional_information": _ORDER_K,
    "exact_conditional_information": _ORDER_K,
    "judge_heads": "cc.extract_graph(model, batch) judges entries by cc.recover_graph on the same sequences",
    "pair_gain": _ORDER_K,
    "take_turn": _MATCHES,
    "train_in_turns": _MATCHES,
}


def missing(module: str, name: str) -> AttributeError:
    """What to raise for a name that a module has not: what stands in place of one that is gone."""
    if name in GONE:
        return AttributeError(f"{module}.{name} went with heads in turns: {GONE[name]}; see docs/SEVERAL_PARENTS.md")
    return AttributeError(f"module {module!r} has no attribute {name!r}")
