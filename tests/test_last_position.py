"""The last layer at the last position alone is the same model: in logits and in gradients (hooks: test_attachments)."""

import pytest
import torch
from assertions import assert_close

import causal_circuits as cc
from causal_circuits.models import logits

TOKENS = torch.tensor([[0, 1, 2, 0, 3, 1], [2, 2, 1, 1, 0, 0], [3, 0, 3, 0, 3, 0]])


def model_with_biases(**sizes: int) -> cc.models.HookedTransformer:
    model = cc.models.ordinary_transformer(4, 6, d_model=5, dtype=torch.float64, **sizes)
    generator = torch.Generator().manual_seed(1)
    for name, parameter in model.named_parameters():
        if ".b_" in name:
            parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    "sizes", [{}, {"n_heads": 3, "d_head": 2}, {"d_mlp": 0}, {"n_layers": 1}, {"n_layers": 3}], ids=str
)
def test_it_equals_the_plain_forward_in_logits_and_gradients(sizes):
    model, weights = model_with_biases(**sizes), torch.randn(3, 4, generator=torch.Generator().manual_seed(2)).double()
    gradients = []
    for output in (logits(model, TOKENS), model(TOKENS)[:, -1]):
        model.zero_grad(set_to_none=True)
        (output.log_softmax(dim=-1) * weights).sum().backward()
        gradients.append(
            {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}
        )
    assert_close(logits(model, TOKENS), model(TOKENS)[:, -1], 1e-12)  # None: the softmax forgets the last layer's b_K
    for name, gradient in gradients[1].items():
        assert float((gradients[0][name] - gradient).abs().max()) <= 1e-11 * max(1.0, float(gradient.abs().max())), name
