"""The value path equals attention over a sequence of one token, the naive way to look at a token alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from silc_bench.models.towers import each_token_alone, value_path

B, N, W, E = 2, 5, 24, 16


@pytest.mark.parametrize("kinds", [{}, {"kdim": W, "vdim": W}, {"bias": False}])
def test_value_path_is_attention_on_one_token(kinds):
    torch.manual_seed(0)
    width = W if "kdim" in kinds else E
    attention = nn.MultiheadAttention(E, 4, batch_first=True, **kinds).eval()
    nn.init.normal_(attention.out_proj.weight)
    if attention.in_proj_bias is not None:
        nn.init.normal_(attention.in_proj_bias)
    tokens, query = torch.randn(B, N, width), torch.randn(1, 1, E)
    with torch.no_grad():
        ours = value_path(attention, tokens)
        for b in range(B):
            for n in range(N):
                token = tokens[b, n].view(1, 1, width)
                torch.testing.assert_close(ours[b, n], attention(query, token, token)[0][0, 0])


def test_the_mean_of_the_values_weighted_as_the_heads_weigh_them_is_the_attention():
    torch.manual_seed(1)
    attention = nn.MultiheadAttention(E, 1, batch_first=True).eval()
    tokens, query = torch.randn(B, N, E), torch.randn(1, 1, E)
    with torch.no_grad():
        pooled, weights = attention(query.expand(B, -1, -1), tokens, tokens)
        torch.testing.assert_close(weights @ value_path(attention, tokens), pooled)


class _Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(E, 4, batch_first=True)

    def forward(self, x, attn_mask=None):
        return x + self.attention(x, x, x, need_weights=False, attn_mask=attn_mask)[0]


def test_each_token_sees_itself_alone_and_only_while_asked():
    torch.manual_seed(2)
    block, tokens = _Block().eval(), torch.randn(B, N, E)
    with torch.no_grad():
        before = block(tokens)
        with each_token_alone(block):
            alone = block(tokens)
        naive = torch.stack([block(tokens[:, n : n + 1]) for n in range(N)], dim=1)[:, :, 0]
        torch.testing.assert_close(alone, naive)
        assert torch.equal(block(tokens), before)
        assert (before - alone).abs().max() > 1e-2


def test_the_block_is_as_it_was_after_an_error():
    block = _Block().eval()
    with pytest.raises(AssertionError), torch.no_grad(), each_token_alone(block):
        block(torch.randn(B, N, E + 1))
    assert not block._forward_pre_hooks


def test_half_precision_is_looked_at_alone_too():
    torch.manual_seed(3)
    block, tokens = _Block().eval(), torch.randn(B, N, E)
    with torch.no_grad(), each_token_alone(block):
        exact = block(tokens)
        with torch.autocast("cpu", torch.bfloat16):
            half = block(tokens)
    assert (half - exact).abs().max() < 0.05
