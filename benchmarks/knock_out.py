"""The cost of knocking out every attention entry, ours against TransformerLens's, on the same model, batch and metric.

TransformerLens's `get_act_patch_attn_head_pattern_dest_src_pos` patches one (layer, head, query, key) at a time, a
forward pass each. Given a clean run whose patterns are all zero it cuts each entry, which is what
`knock_out_edges(method="zero")` does in closed form. Both are run over the same sequences; the numbers must agree.

    python benchmarks/knock_out.py --out knock_out.json    # most of the time goes to their 800 forward passes
"""

import argparse
import json
import time
from pathlib import Path

import torch
from transformer_lens import patching

import causal_circuits as cc


def ours(model: cc.models.HookedTransformer, batch: cc.Batch, path: str) -> tuple[float, torch.Tensor]:
    """Seconds for every entry of both layers, and the effects [layer, head_index, query_pos, key_pos]."""
    began = time.perf_counter()
    effects = [cc.knock_out_edges(model, batch, layer=layer, path=path).effect for layer in range(2)]
    return time.perf_counter() - began, torch.stack(effects)


def theirs(model: cc.models.HookedTransformer, batch: cc.Batch) -> tuple[float, torch.Tensor]:
    """The same from TransformerLens: the metric with each entry cut, less the metric of the untouched model."""
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    _, cache = model.run_with_cache(batch.tokens, names_filter=names)
    nothing = {name: torch.zeros_like(cache[name]) for name in names}

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -(batch.target_probs * logits[:, -1].log_softmax(dim=-1)).sum(dim=-1).mean()

    began = time.perf_counter()
    found = patching.get_act_patch_attn_head_pattern_dest_src_pos(model, batch.tokens, nothing, loss)
    return time.perf_counter() - began, found - loss(model(batch.tokens))


def main() -> None:
    """Print the table; write it if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-vocab", type=int, default=10)
    parser.add_argument("--n-ctx", type=int, default=20)
    parser.add_argument("--heads", type=int, nargs=2, default=(1, 1), help="of the two layers")
    parser.add_argument("--sequences", type=int, default=1024)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    arguments = parser.parse_args()
    model = cc.disentangled_transformer(
        arguments.d_vocab, arguments.n_ctx, arguments.heads, init_scale=0.5, seed=arguments.seed
    )
    task = cc.InContextTask(cc.chain_graph(arguments.n_ctx), d_vocab=arguments.d_vocab)
    batch = task.sample(arguments.sequences, seed=arguments.seed)
    ours(model, batch[:8], "closed_form")  # warm up
    with torch.no_grad():
        closed_form, effects = ours(model, batch, "closed_form")
        transformer_lens, expected = theirs(model, batch)
    heads = effects.shape[1]
    difference = (effects - expected[:, :heads]).nan_to_num().abs().max()  # above the diagonal nothing is cut
    result = {
        "closed_form_s": closed_form,
        "transformer_lens_s": transformer_lens,
        "times_faster": transformer_lens / closed_form,
        "largest_difference": float(difference),
        "threads": torch.get_num_threads(),
    }
    for name, value in result.items():
        print(f"{name:20s} {value:.4g}")
    if arguments.out:
        content = {"config": {**vars(arguments), "out": str(arguments.out)}, **result}
        arguments.out.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
