"""The names of `causal_circuits.pages` that figures have always had."""

from causal_circuits.pages import AttentionView as AttentionView
from causal_circuits.pages import Check as Check
from causal_circuits.pages import Section as Section
from causal_circuits.pages import attention_html as attention_html
from causal_circuits.pages import attention_view as attention_view
from causal_circuits.pages import circuits_vis_bundle as circuits_vis_bundle
from causal_circuits.pages import figure_html as figure_html
from causal_circuits.pages import save_figure as save_figure
from causal_circuits.pages import table_html as table_html
from causal_circuits.pages import write_report as write_report
