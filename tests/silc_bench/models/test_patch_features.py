"""The value path equals attention over a sequence of one token: a naive look at it alone."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from silc_bench.models.patch_features import value_path

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
