"""docs/TRANSFORMERLENS.md says which of TransformerLens's own tools take which model; here each is called."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformer_lens import SVDInterpreter, patching
from transformer_lens.head_detector import detect_head
from transformer_lens.tools.analysis.attribution_patching import EdgeAttributionConfig, attribution_patch
from transformer_lens.tools.analysis.direct_logit_attribution import direct_logit_attribution

import causal_circuits as cc
from causal_circuits.models import HookedTransformer, hooked

PAGE = Path(__file__).parents[1] / "docs" / "TRANSFORMERLENS.md"
IS_OLD = hooked.LibraryTransformer is not None
COLUMNS = {"ours, 3.9": 1} if IS_OLD else {"ours, 4.3": 2, "bridge, 4.3": 3}
TOKENS = torch.randint(3, (2, 6), generator=torch.Generator().manual_seed(0))
OTHER = TOKENS.flip(0)
Tool = Callable[[HookedTransformer], object]


def metric(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 0].mean()


def cached(model: HookedTransformer, tokens: torch.Tensor = TOKENS) -> object:
    return model.run_with_cache(tokens)[1]


def patch(*names: str) -> Tool:
    return lambda model: [
        getattr(patching, f"get_act_patch_{name}")(model, OTHER, cached(model), metric) for name in names
    ]


def patch_direct_path(model: HookedTransformer) -> object:
    if IS_OLD:
        from transformer_lens.tools.analysis.direct_path_patching import get_act_patch_direct_path
    else:
        from transformer_lens.patching import get_act_patch_direct_path
    return get_act_patch_direct_path(model, OTHER, cached(model), cached(model, OTHER), metric, 0, 0)


TOOLS: dict[str, Tool] = {
    "`patching`: heads, `resid_pre`, `attn_out`": patch("resid_pre", "attn_out", "attn_head_all_pos_every"),
    "`patching`: entries of patterns": patch("attn_head_pattern_all_pos", "attn_head_pattern_dest_src_pos"),
    "`patching`: `mlp_out`, `block_every` (models with MLPs)": patch("mlp_out", "block_every"),
    "direct path patching": patch_direct_path,
    "attribution patching, nodes (models with MLPs)": lambda model: attribution_patch(model, TOKENS, OTHER, metric),
    "attribution patching, edges (models with MLPs)": lambda model: attribution_patch(
        model, TOKENS, OTHER, metric, EdgeAttributionConfig(granularity="edge")
    ),
    "direct logit attribution": lambda model: direct_logit_attribution(model, TOKENS[:1], 1),
    "`head_detector`": lambda model: detect_head(model, TOKENS[:1, :5], torch.eye(5).roll(-1, 1).tril()),
    "`SVDInterpreter`": lambda model: SVDInterpreter(model).get_singular_vectors("OV", 0, 2, 0),
    "`ActivationCache`: decompositions": lambda model: [
        cached(model).decompose_resid(),
        cached(model).accumulated_resid(),
        cached(model).stack_head_results(),
        cached(model).get_full_resid_decomposition(expand_neurons=False),
    ],
}


def rows() -> dict[str, list[str]]:
    """The page's table: a tool, then whether each model is taken."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return {cells[0]: cells for cells in lines if cells[0] in TOOLS}


def takes(tool: Tool, model: HookedTransformer) -> bool:
    try:
        tool(model)
    except (AssertionError, KeyError, NotImplementedError, RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("tool", TOOLS)
def test_the_page_says_which_models_a_tool_takes(tool):
    d_mlp = 8 if "MLPs" in tool else 0
    model = cc.models.ordinary_transformer(3, 6, n_heads=2, d_model=8, d_mlp=d_mlp).eval()
    models = {1: model, 2: model, 3: cc.models.as_bridge(model)}
    for name, column in COLUMNS.items():
        assert takes(TOOLS[tool], models[column]) == rows()[tool][column].startswith("yes"), name
