"""Results as figures: matplotlib axes, CircuitsVis attention views, one self-contained HTML report.

This folder is the one door to matplotlib and to CircuitsVis. Figures compute nothing and change no global style.
"""

from causal_circuits.display import table_html
from causal_circuits.figures.animation import graph_film_html, plot_graph_forming, save_animation
from causal_circuits.figures.arcs import plot_graph_comparison, plot_recovered_graph
from causal_circuits.figures.attention_view import AttentionView, attention_view, circuits_vis_bundle
from causal_circuits.figures.blocks import (
    WeightBlocks,
    plot_attention_by_position,
    plot_attentions,
    plot_weight_blocks,
    plot_weight_panels,
)
from causal_circuits.figures.circuits import (
    plot_benchmark,
    plot_circuit,
    plot_formation,
    plot_frontier,
    plot_needed_edges,
    plot_onsets,
)
from causal_circuits.figures.graph_view import interactive_graph
from causal_circuits.figures.information_plots import (
    plot_agreement,
    plot_edge_formation,
    plot_gradient_vs_information,
    plot_recovery,
)
from causal_circuits.figures.matrices import plot_attention_and_graph, plot_film_strip, plot_knock_out, plot_matrix
from causal_circuits.figures.phases import plot_phases, plot_table
from causal_circuits.figures.plots import plot_ablation, plot_gradient_and_information, plot_head_scores, plot_loss
from causal_circuits.figures.rendering import figure_html, save_figure
from causal_circuits.figures.report import Check, Section, attention_html, report_html, write_report
from causal_circuits.figures.sequence_view import position_labels, sequence_view
from causal_circuits.figures.studies import plot_curves, plot_groups, plot_scaling

__all__ = [
    "AttentionView",
    "Check",
    "Section",
    "WeightBlocks",
    "attention_html",
    "attention_view",
    "circuits_vis_bundle",
    "figure_html",
    "graph_film_html",
    "interactive_graph",
    "plot_ablation",
    "plot_agreement",
    "plot_attention_and_graph",
    "plot_attention_by_position",
    "plot_attentions",
    "plot_benchmark",
    "plot_circuit",
    "plot_curves",
    "plot_edge_formation",
    "plot_film_strip",
    "plot_formation",
    "plot_frontier",
    "plot_gradient_and_information",
    "plot_gradient_vs_information",
    "plot_graph_comparison",
    "plot_graph_forming",
    "plot_groups",
    "plot_head_scores",
    "plot_knock_out",
    "plot_loss",
    "plot_matrix",
    "plot_needed_edges",
    "plot_onsets",
    "plot_phases",
    "plot_recovered_graph",
    "plot_recovery",
    "plot_scaling",
    "plot_table",
    "plot_weight_blocks",
    "plot_weight_panels",
    "position_labels",
    "report_html",
    "save_animation",
    "save_figure",
    "sequence_view",
    "table_html",
    "write_report",
]
