"""The cost of knocking out attention entries, ours against TransformerLens's: same model, batch, metric and entries.

TransformerLens's `get_act_patch_attn_head_pattern_dest_src_pos` patches one (layer, head, query, key) at a time, a
forward pass each. Given a clean run whose patterns are all zero it cuts each entry, which is what
`knock_out_edges(method="zero")` does in closed form. Its own choice of entries would also take those above the
diagonal, which causality has zeroed already; here both are given the same list:

* every causal entry of both layers (of layer 1 all rows but the last change nothing at the last position);
* the entries that can matter: layer 0's, and the last row of layer 1.

The two are timed in turn; the numbers must agree.

    python benchmarks/knock_out.py --out knock_out.json    # most of the time goes to TransformerLens's forward passes
"""

import statistics
import time
from pathlib import Path

import pandas as pd
import torch
import tyro
from measuring import tell
from transformer_lens.patching import generic_activation_patch, layer_head_dest_src_pos_pattern_patch_setter

import causal_circuits as cc

QUICK = 9  # ours takes a fraction of a second: so often a round
Entries = list[tuple[int, int, int, int]]  # layer, head, query, key


def causal_entries(heads: tuple[int, int], n_ctx: int) -> Entries:
    """Every entry at or below the diagonal, of every live head."""
    return [
        (layer, head, query, key)
        for layer, n_heads in enumerate(heads)
        for head in range(n_heads)
        for query in range(n_ctx)
        for key in range(query + 1)
    ]


def ours(model: cc.models.HookedTransformer, batch: cc.Batch, entries: Entries) -> tuple[float, torch.Tensor]:
    """Seconds, and the effect of every entry."""
    began = time.perf_counter()
    effect = {
        layer: cc.knock_out_edges(
            model, batch, layer=layer, entries=[e[1:] for e in entries if e[0] == layer], path="closed_form"
        ).effect
        for layer in range(2)
    }
    return time.perf_counter() - began, torch.stack([effect[e[0]][e[1:]] for e in entries])


def theirs(model: cc.models.HookedTransformer, batch: cc.Batch, entries: Entries) -> tuple[float, torch.Tensor]:
    """The same from TransformerLens: the metric with each entry cut, less the metric of the untouched model."""
    model.eval()  # which TransformerLens 4's patching asks for
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in range(2)]
    _, cache = model.run_with_cache(batch.tokens, names_filter=names)
    nothing = {name: torch.zeros_like(cache[name]) for name in names}

    def loss(logits: torch.Tensor) -> torch.Tensor:
        return -(batch.target_probs * logits[:, -1].log_softmax(dim=-1)).sum(dim=-1).mean()

    began = time.perf_counter()
    found = generic_activation_patch(
        model,
        batch.tokens,
        nothing,
        loss,
        patch_setter=layer_head_dest_src_pos_pattern_patch_setter,
        activation_name="pattern",
        index_df=pd.DataFrame(entries, columns=["layer", "head_index", "dest_pos", "src_pos"]),
    )
    return time.perf_counter() - began, found - loss(model(batch.tokens))


def compare(
    model: cc.models.HookedTransformer, batch: cc.Batch, entries: Entries, rounds: int
) -> dict[str, float | list[float]]:
    """Medians and the median ratio over rounds in turn, and the largest difference."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        answers = [ours(model, batch, entries) for _ in range(QUICK)]
        effects = answers[0][1]
        their_time, expected = theirs(model, batch, entries)
        seconds[0].append(statistics.median(taken for taken, _ in answers))
        seconds[1].append(their_time)
    return {
        "entries": len(entries),
        "closed_form_s": statistics.median(seconds[0]),
        "transformer_lens_s": statistics.median(seconds[1]),
        "times_faster": statistics.median(b / a for a, b in zip(*seconds, strict=True)),
        "largest_difference": float((effects - expected).abs().max()),
        "rounds": list(map(list, seconds)),
    }


def main(
    d_vocab: int = 10,
    n_ctx: int = 20,
    heads: tuple[int, int] = (1, 1),
    sequences: int = 1024,
    rounds: int = 3,
    threads: int | None = None,
    seed: int = 0,
    out: Path | None = None,
) -> None:
    """Print a row for each list of entries; --threads 1 is fairest where other work runs."""
    torch.set_num_threads(threads or torch.get_num_threads())
    model = cc.disentangled_transformer(d_vocab, n_ctx, heads, init_scale=0.5, seed=seed)
    batch = cc.InContextTask(cc.chain_graph(n_ctx), d_vocab=d_vocab).sample(sequences, seed=seed)
    every, rows = causal_entries(heads, n_ctx), list[dict[str, object]]()
    lists = {
        "every causal entry": every,
        "entries that can matter": [e for e in every if e[0] == 0 or e[2] == n_ctx - 1],
    }
    with torch.no_grad():
        ours(model, batch[:8], every)  # warm up
        for what, entries in lists.items():
            rows.append({"what": what, **compare(model, batch, entries, rounds)})
            tell(rows, out)


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
