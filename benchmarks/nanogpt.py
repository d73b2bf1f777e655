"""The peer of the train step: an eager float32 GPT-2 in torch, shaped like github.com/karpathy/nanoGPT.

Legend: B batch, L length, D width, V vocabulary.
"""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    """Causal self-attention with one product for queries, keys and values, and torch's fused kernel."""

    def __init__(self, shape):
        super().__init__()
        self.heads = shape.heads
        self.c_attn = nn.Linear(shape.width, 3 * shape.width)
        self.c_proj = nn.Linear(shape.width, shape.width)

    def forward(self, x_BxLxD):
        B, L, D = x_BxLxD.shape
        q, k, v = (
            part.view(B, L, self.heads, D // self.heads).transpose(1, 2)
            for part in self.c_attn(x_BxLxD).split(D, dim=2)
        )
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(out.transpose(1, 2).contiguous().view(B, L, D))


class MLP(nn.Module):
    """`c_proj(gelu(c_fc(x)))`; the erf form of GELU, as in nanoGPT, which torch computes faster than tanh."""

    def __init__(self, shape):
        super().__init__()
        self.c_fc = nn.Linear(shape.width, 4 * shape.width)
        self.c_proj = nn.Linear(4 * shape.width, shape.width)

    def forward(self, x_BxLxD):
        return self.c_proj(F.gelu(self.c_fc(x_BxLxD)))


class Block(nn.Module):
    """Pre-norm block."""

    def __init__(self, shape):
        super().__init__()
        self.ln_1, self.attn = nn.LayerNorm(shape.width), Attention(shape)
        self.ln_2, self.mlp = nn.LayerNorm(shape.width), MLP(shape)

    def forward(self, x_BxLxD):
        x_BxLxD = x_BxLxD + self.attn(self.ln_1(x_BxLxD))
        return x_BxLxD + self.mlp(self.ln_2(x_BxLxD))


class GPT(nn.Module):
    """The model; the output matrix is the token embedding."""

    def __init__(self, shape):
        super().__init__()
        self.wte = nn.Embedding(shape.vocab_size, shape.width)
        self.wpe = nn.Embedding(shape.positions, shape.width)
        self.h = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.ln_f = nn.LayerNorm(shape.width)

    def forward(self, tokens_BxL):
        """Next-token logits `[B, L, V]`."""
        positions_L = torch.arange(tokens_BxL.shape[1], device=tokens_BxL.device)
        x_BxLxD = self.wte(tokens_BxL) + self.wpe(positions_L)
        for block in self.h:
            x_BxLxD = block(x_BxLxD)
        return self.ln_f(x_BxLxD) @ self.wte.weight.T


def load(shape, weights) -> GPT:
    """The model with weights from `gpt2_weights.random_weights`; torch keeps matrices `[outputs, inputs]`."""
    model = GPT(shape)
    turned = {n: w.T if n.startswith("h.") and w.ndim == 2 else w for n, w in weights.items()}
    model.load_state_dict({name: torch.tensor(weight) for name, weight in turned.items()})
    return model


def make_step(model, tokens_BxL, targets_BxL, optimizer: dict):
    """`step() -> loss`: forward, backward, clipping, fused AdamW; decay on matrices and embeddings only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optimizer["weight_decay"]},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(
        groups,
        lr=optimizer["learning_rate"],
        betas=(optimizer["b1"], optimizer["b2"]),
        eps=optimizer["epsilon"],
        fused=True,
    )

    def step():
        logits_BxLxV = model(tokens_BxL)
        loss = F.cross_entropy(logits_BxLxV.flatten(0, 1), targets_BxL.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, optimizer["clip_norm"])
        adamw.step()
        adamw.zero_grad(set_to_none=True)
        return loss

    return step
