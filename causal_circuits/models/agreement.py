"""The forward that an analysis is about to take against TransformerLens's own, on a few sequences, at its entrance.

`acceptance` lists what the fast forwards know; this finds what nobody thought of, and models that answer differently
each time, or by batch.
"""

import torch
from jaxtyping import Int
from torch import Tensor

from causal_circuits.arguments import check_arguments
from causal_circuits.models.acceptance import attachments
from causal_circuits.models.annotation import HookedTransformer
from causal_circuits.models.structured import as_log_probs, choose_forward, log_probs, plain_logits
from causal_circuits.tasks import batch as _batch

# Of log-probabilities, relative to the largest of them (and to 1).
_TOLERANCE = {torch.float64: 1e-6, torch.float32: 2e-3}
_SAME = 1e-6  # two runs of the same forward
_PRODUCTS = 2**22  # of one head's projection of the sequences that are tried, at most; one sequence at least
_BY_BATCH = (
    "a model must answer every sequence without regard to the others in its batch: {}; let hooks act on each sequence "
    "alone (a mean over a batch can be stored beforehand)"
)


@check_arguments
@torch.no_grad()
def check_forward(model: HookedTransformer, tokens: Int[Tensor, "batch n_ctx"], *, each_alone: bool = True) -> None:
    """Raise a ValueError unless the forward that `log_probs` takes agrees with ``model(tokens)``.

    It also finds a model that answers differently each time, one that is compiled (torch then skips hooks) and, with
    `each_alone`, one whose hooks mix the sequences of a batch. The first few sequences are tried, and all (of one pass)
    where something is attached to the model.

    >>> model, tokens = cc.disentangled_transformer(d_vocab=3, n_ctx=4, init_scale=1.0), torch.tensor([[0, 1, 2, 0]])
    >>> model.add_hook("blocks.0.attn.hook_z", lambda z, hook: z + torch.rand_like(z))
    >>> check_forward(model, tokens)
    Traceback (most recent call last):
    ValueError: the model must give the same output for the same tokens: ...
    """
    attached, is_plain = attachments(model), choose_forward(model) is plain_logits
    for found in attached:
        if found.startswith("compiled module"):
            raise ValueError(
                "a model that is analysed must call its hooks, and torch skips them in compiled modules: found a "
                f"{found}; analyse the model as it was before model.compile()"
            )
    n = min(8, max(1, _PRODUCTS // (tokens.shape[1] * model.cfg.d_model * model.cfg.d_head)))
    tried = tokens[: _batch.CHUNK if attached else n].to(model.W_U.device)
    expected = _plain(model, tried)
    if attached or is_plain:
        off = _largest_difference(_plain(model, tried), expected)
        if off > _SAME:
            raise ValueError(
                f"the model must give the same output for the same tokens: two runs differ by {off:.3g} in a "
                "log-probability; is there dropout or other randomness in a hook or a module? remove it "
                "(model.reset_hooks()) or call model.eval()"
            )
    tolerance = _TOLERANCE.get(model.W_U.dtype, 0.5)
    if attached and each_alone and len(tried) > 1:
        _check_alone(model, tried[:1], expected[:1], tolerance)
    off = 0.0 if is_plain else _largest_difference(log_probs(model, tried).double(), expected)
    if off > tolerance:
        raise ValueError(
            f"the fast forward must agree with model(tokens): it is off by {off:.3g} in a log-probability; something "
            "about this model is unknown to causal_circuits: analyse it within causal_circuits.models.plain_forward(), "
            "and please report it"
        )


def _plain(model: HookedTransformer, tokens: Tensor) -> Tensor:
    return as_log_probs(model, plain_logits(model, tokens)).double()


def _check_alone(model: HookedTransformer, tokens: Tensor, expected: Tensor, tolerance: float) -> None:
    """Refuse hooks whose effect on a sequence depends on the batch: tools repeat, shuffle and cut batches."""
    try:
        alone = _plain(model, tokens)
    except Exception as error:  # whatever the user's hook raises when the batch is another one
        raise ValueError(_BY_BATCH.format(f"it fails for the first sequence alone ({type(error).__name__})")) from error
    off = _largest_difference(alone, expected)
    if off > tolerance:
        raise ValueError(
            _BY_BATCH.format(f"the first sequence's log-probabilities are off by {off:.3g} without the others")
        )


def _largest_difference(found: Tensor, expected: Tensor) -> float:
    """Between log-probabilities, relative to the largest finite one; infinite where one of two is not finite."""
    finite = expected.isfinite()
    size = max(1.0, float(expected[finite].abs().max())) if bool(finite.any()) else 1.0
    same = (found == expected) | (found.isnan() & expected.isnan())
    return float(torch.where(same, 0.0, (found - expected).abs()).nan_to_num(torch.inf, torch.inf).max()) / size
