"""Linear-cost attention by positive random features, as in T2T-ViT.

Choromanski et al. 2021, "Rethinking Attention with Performers", §2.2, Lemma 1 (https://arxiv.org/abs/2009.14794).
"""

from contextlib import nullcontext

import torch
from torch import Tensor, nn

EPSILON = 1e-8  # of the release; without it its large-weight fixture moves by 4e-3


class RandomFeatureAttention(nn.Module):
    """softmax(q k^T) v in expectation, at a cost linear in the number of tokens.

    With m frozen random features w_i the kernel exp(q.k) is the mean of f_i(q) f_i(k), f_i(x) = exp(w_i.x - |x|^2 / 2).
    The release computes these exponentials directly: in half precision they underflow and the quotient becomes 0 / 0.
    Here the largest exponent of each query and of all keys is subtracted first, in float32 or wider even under
    autocast: the same quotient, its constant 1e-8 included, for any size of q and k.

    Args:
        dim: channels of q and k.
        num_features: m.

    Attributes:
        w: (m, dim) random features, a buffer: saved, not trained.
    """

    w: Tensor

    def __init__(self, dim: int, num_features: int):
        super().__init__()
        features = nn.init.orthogonal_(torch.empty(num_features, dim)) * num_features**0.5
        self.register_buffer("w", features)

    def exponents(self, x: Tensor) -> Tensor:
        """(B, N, dim) -> (B, N, m) exponents w_i.x - |x|^2 / 2."""
        return x @ self.w.to(x.dtype).T - x.square().sum(-1, keepdim=True) / 2

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """(B, N, dim), (B, M, dim), (B, M, e) -> (B, N, e)."""
        given = v.dtype
        with nullcontext() if v.is_meta else torch.autocast(v.device.type, enabled=False):
            q, k, v = (x.to(torch.promote_types(x.dtype, torch.float32)) for x in (q, k, v))
            of_q, of_k = self.exponents(q), self.exponents(k)
            largest_q = of_q.detach().amax(2, keepdim=True)  # (B, N, 1)
            largest_k = of_k.detach().amax((1, 2), keepdim=True)  # (B, 1, 1)
            of_q, of_k = (of_q - largest_q).exp(), (of_k - largest_k).exp()
            numerator = of_q @ (of_k.transpose(1, 2) @ v)  # (B, N, e)
            denominator = of_q @ of_k.sum(1)[:, :, None]  # (B, N, 1)
            floor = EPSILON * len(self.w) * (-largest_q - largest_k).exp()  # 1e-8, scaled as the others are
            return (numerator / (denominator + floor)).to(given)
