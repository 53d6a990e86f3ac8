"""The training step in plain PyTorch from the papers' formulas; it imports nothing of the product.

``PlainRun(config, weights).step(pixels, tokens, masked)`` does what ``train_step`` must do. What is
drawn at random comes in as tensors: the weights by their names, the pixels of the views, the places
of the masked patches. All else is computed here, in float64: towers, pooling, heads, targets,
losses, clipping, optimiser, schedules, teacher, centres and the average. Autograd gives gradients.

    loss = text loss + weight * distillation + masked.weight * masked patches

Sources: SigLIP 2303.15343 (towers, eq. 1), CLIP 2103.00020, SILC 2310.13355, DINO 2104.14294 (head,
eq. 1, centre), iBOT 2111.07832 and SigLIP 2 2502.14786 (masked patches, late start), SwAV
2006.09882 (Sinkhorn-Knopp), UniCL 2204.03610 (equal texts), AdamW 1711.05101, Adafactor 1804.04235
and 2106.04560 (as big_vision has it), LiT 2111.07991 (a locked tower).
"""

import math

import numpy as np
import torch

NORM_EPSILON = 1e-6  # of layer norms; big_vision's
CLIP_EPSILON = 1e-6  # added to the norm that a gradient is divided by; torch's


# ---- towers ----


def norm(w, name, x):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + NORM_EPSILON).sqrt()
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(w, name, x):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def gelu(x, kind):
    if kind == "exact":
        return x * (1 + torch.erf(x / math.sqrt(2))) / 2
    return x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2


def mlp(w, name, x, kind):
    return linear(w, f"{name}.fc2", gelu(linear(w, f"{name}.fc1", x), kind))


def attend(q, k, v, heads):
    """Each head has its own slice of the width, and softmax(q k^T / sqrt(d)) v."""
    parts = []
    for query, key, value in zip(*(x.chunk(heads, -1) for x in (q, k, v)), strict=True):
        scores = query @ key.mT / math.sqrt(query.shape[-1])
        parts.append(softmax(scores) @ value)
    return torch.cat(parts, -1)


def softmax(logits):
    e = (logits - logits.amax(-1, keepdim=True)).exp()
    return e / e.sum(-1, keepdim=True)


def log_softmax(logits):
    logits = logits - logits.amax(-1, keepdim=True)
    return logits - logits.exp().sum(-1, keepdim=True).log()


def unit(x):
    return x / x.square().sum(-1, keepdim=True).sqrt()


def transformer(w, name, x, config):
    for i in range(config.depth):
        block = f"{name}.blocks.{i}"
        q, k, v = linear(w, f"{block}.attention.qkv", norm(w, f"{block}.norm1", x)).chunk(3, -1)
        x = x + linear(w, f"{block}.attention.out", attend(q, k, v, config.num_heads))
        x = x + mlp(w, f"{block}.mlp", norm(w, f"{block}.norm2", x), config.gelu)
    return norm(w, f"{name}.norm", x)


def resizing(old, new):
    """[new, old]: an antialiased linear resize of a row, a triangle about each new centre."""
    scale = old / new
    centers = (torch.arange(new) + 0.5) * scale
    distance = (torch.arange(old) + 0.5 - centers[:, None]).abs() / max(1, scale)
    triangle = (1 - distance.double()).clamp_min(0)
    return triangle / triangle.sum(1, keepdim=True)


def patch_tokens(w, images, config, masked=None):
    """[B, 3, s, s] -> [B, N, W]. ``masked`` [B, n]: places where the mask token stands."""
    kernel = w["vision.patch.weight"]
    x = torch.nn.functional.conv2d(images, kernel, w["vision.patch.bias"], config.patch_size)
    side = x.shape[-1]
    x = x.flatten(2).mT
    if masked is not None:
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
        for row, places in zip(hidden, masked, strict=True):
            row[places] = True
        x = torch.where(hidden[..., None], w["mask_token"], x)

    grid = config.image_size // config.patch_size
    positions = w["vision.positions"].view(grid, grid, -1)
    if side != grid:
        one = resizing(grid, side)
        positions = torch.einsum("yi,xj,ijw->yxw", one, one, positions)
    return transformer(w, "vision", x + positions.reshape(side * side, -1), config)


def pooled(w, tokens, config):
    """A learned query attends to all patches (MAP), then a residual MLP."""
    q = linear(w, "vision.pool.q", w["vision.pool.probe"])
    k, v = linear(w, "vision.pool.kv", tokens).chunk(2, -1)
    x = linear(w, "vision.pool.out", attend(q, k, v, config.num_heads))[:, 0]
    return x + mlp(w, "vision.pool.mlp", norm(w, "vision.pool.norm", x), config.gelu)


def of_image(w, images, config):
    return pooled(w, patch_tokens(w, images, config), config)


def of_text(w, tokens, config):
    x = transformer(w, "text", w["text.embedding.weight"][tokens] + w["text.positions"], config)
    return linear(w, "text.head", x[:, -1])


def head_logits(w, name, x):
    """DINO's head: three layers, unit length, a last layer with rows of unit length."""
    for layer in (0, 2):
        x = gelu(linear(w, f"{name}.layers.{layer}", x), "exact")
    return unit(linear(w, f"{name}.layers.4", x)) @ unit(w[f"{name}.prototypes"]).T


# ---- losses ----


def text_loss(w, images, texts, right, config):
    """One view of the images and all texts. ``right`` [B, B] says which texts are an image's."""
    logits = w["log_scale"].exp() * unit(images) @ unit(texts).T
    if config.loss == "sigmoid":
        z = torch.where(right, 1.0, -1.0)
        return torch.log1p(torch.exp(-z * (logits + w["logit_bias"]))).sum() / len(images)
    share = right / right.sum(1, keepdim=True)
    both = [-(share * log_softmax(table)).sum(1).mean() for table in (logits, logits.T)]
    return sum(both) / 2


def balanced(logits, temp):
    """Sinkhorn-Knopp over all rows: each prototype as often as the others, three times."""
    q = (logits / temp).exp()
    for _ in range(3):
        q = q / q.sum(0) / q.shape[1]
        q = q / q.sum(1, keepdim=True) / len(q)
    return q * len(q)


# ---- optimiser ----


def decays(name, weight):
    """Kernels and prototypes; no bias, norm, position, embedding or query (big_vision)."""
    spared = ("positions", "embedding.weight", "probe")
    return weight.ndim >= 2 and not name.endswith(spared)


def layers_above(name, depth):
    """Layers of its tower above a weight; what embeds has all of them, and one more."""
    tower, _, rest = name.partition(".")
    if tower not in depth:
        return 0
    if rest.startswith("blocks."):
        return depth[tower] - int(rest.split(".")[1])
    return depth[tower] + 1 if rest.startswith(("patch.", "positions", "embedding.")) else 0


class AdamW:
    def __init__(self, config):
        self.config, self.state = config, {}

    def __call__(self, name, gradient):
        t, m, v = self.state.get(name, (0, 0.0, 0.0))
        b1, b2 = self.config.beta1, self.config.beta2
        t, m, v = t + 1, b1 * m + (1 - b1) * gradient, b2 * v + (1 - b2) * gradient**2
        self.state[name] = (t, m, v)
        return m / (1 - b1**t) / ((v / (1 - b2**t)).sqrt() + 1e-8)


class Adafactor:
    """Factored where the second largest dimension has 32 or more; the momentum is kept in bf16."""

    def __init__(self, config):
        self.config, self.state = config, {}

    def __call__(self, name, gradient):
        t, momentum, second = self.state.get(name, (0, torch.zeros_like(gradient), 0.0))
        t += 1
        d = min(0.999, 1 - t**-0.8)
        square = gradient**2 + 1e-30
        order = sorted(range(gradient.ndim), key=lambda i: gradient.shape[i])
        if gradient.ndim >= 2 and gradient.shape[order[-2]] >= 32:
            means = [square.mean(dim, keepdim=True) for dim in (order[-1], order[-2])]
            old = second or (0.0, 0.0)
            second = [d * a + (1 - d) * b for a, b in zip(old, means, strict=True)]
            rows, columns = second
            update = gradient / (rows * columns / rows.mean(order[-2], keepdim=True)).sqrt()
        else:
            second = d * second + (1 - d) * square
            update = gradient / second.sqrt()
        b = self.config.beta1
        update = b * momentum + (1 - b) * update
        self.state[name] = (t, update.bfloat16().double(), second)
        return update


def rate(step, config):
    """Of update ``step``, from 0: a linear warm-up, then one of three curves."""
    o, last = config.optim, config.num_steps
    warm, cool = max(1, round(o.warmup_fraction * last)), round(o.cooldown_fraction * last)
    t = step + 1
    if t < warm:
        return o.lr * t / warm
    if o.schedule == "cosine":
        return o.lr * (1 + math.cos(math.pi * (t - warm) / (last + 1 - warm))) / 2
    left = min(1, (last + 1 - t) / (cool + 1))
    return o.lr * (1 - math.sqrt(1 - left) if o.schedule == "wsd" else math.sqrt(warm / t) * left)


def momentum(step, config):
    """Of the teacher after update ``step``."""
    d = config.distillation
    away = 1 - d.ema_momentum
    if d.ema_batch:
        away = min(1, away * config.batch_size / d.ema_batch)
    if d.ema_schedule == "cosine":
        away = away * (1 + math.cos(math.pi * step / config.num_steps)) / 2
    return 1 - away


# ---- the step ----

ONLY_TAUGHT = ("head.", "patch_head.", "mask_token")
OF_TEACHER = ("vision.", "head.", "patch_head.")


class PlainRun:
    """``config``: read for its numbers. ``weights``: {name: tensor} of the student at its start."""

    def __init__(self, config, weights):
        self.config, self.number = config, 0
        self.weights = {name: value.detach().double().clone() for name, value in weights.items()}
        self.teacher = {n: w for n, w in self.weights.items() if n.startswith(OF_TEACHER)}
        self.average = {n: w for n, w in self.weights.items() if not n.startswith(ONLY_TAUGHT)}
        self.centers = {
            head: torch.zeros(config.distillation.num_prototypes).double()
            for head in ("head", "patch_head")
            if f"{head}.prototypes" in weights
        }
        kinds = {"adamw": AdamW, "adafactor": Adafactor}
        self.optimizer = kinds[config.optim.kind](config.optim)

    @property
    def is_taught(self):
        config = self.config
        begin = round(config.distillation.start_fraction * config.num_steps)
        return bool(self.centers) and self.number >= begin

    def step(self, views, tokens, masked=None):
        """{name: float} of the losses and the gradient's norm.

        ``views``: {"global": [V, B, 3, s, s], "original": [1, B, ...], "local": [L, B, ...]}.
        ``masked``: int64 [V, B, n].
        """
        config, d = self.config, self.config.distillation
        if self.is_taught and self.number == round(d.start_fraction * config.num_steps) > 0:
            self.teacher = {name: self.weights[name] for name in self.teacher}

        learns = {name: w for name, w in self.weights.items() if self.learns(name)}
        leaves = {name: w.clone().requires_grad_() for name, w in learns.items()}
        w = self.weights | leaves
        seen = {}
        if self.is_taught:
            with torch.no_grad():
                seen = self.seen_by_teacher(views["global"], masked)

        terms = {"contrastive": self.contrastive(w, views, tokens)}
        if "head" in seen:
            terms["distillation"] = self.distillation(w, views, self.targets("head", seen["head"]))
        if "patch_head" in seen:
            targets = self.targets("patch_head", seen["patch_head"])
            terms["masked"] = self.masked(w, views["global"], masked, targets)
        factors = {"contrastive": 1, "distillation": d.weight, "masked": config.masked.weight}
        loss = sum(factors[name] * term for name, term in terms.items())
        gradients = dict(zip(leaves, torch.autograd.grad(loss, [*leaves.values()]), strict=True))

        size = math.sqrt(sum(g.square().sum().item() for g in gradients.values()))
        self.update(gradients, min(1, config.optim.clip_norm / (size + CLIP_EPSILON)))
        self.follow(seen)
        self.number += 1
        values = {name: term.item() for name, term in terms.items()}
        return values | {"loss": loss.item(), "gradient_norm": size}

    def learns(self, name):
        if name.startswith(ONLY_TAUGHT):
            return self.is_taught
        if name == "logit_bias":
            return self.config.contrastive.loss == "sigmoid"
        locked = self.config.optim.locked
        return not (locked and name.startswith(f"{locked}."))

    def contrastive(self, w, views, tokens):
        """The mean over all views that meet the text."""
        config = self.config
        right = torch.eye(len(tokens), dtype=torch.bool)
        if config.contrastive.equal_texts == "positive":
            right = (tokens[:, None] == tokens).all(-1)
        texts = of_text(w, tokens, config.text)
        crops = [x for kind in config.contrastive.images.split("+") for x in views[kind]]
        losses = [
            text_loss(w, of_image(w, x, config.vision), texts, right, config.contrastive)
            for x in crops
        ]
        return sum(losses) / len(losses)

    def seen_by_teacher(self, views, masked):
        """{head: logits}: of views [V, B, K], of the masked places [V, B, n, K]."""
        w, config, seen = self.teacher, self.config, {}
        tokens = torch.stack([patch_tokens(w, x, config.vision) for x in views])
        if "head" in self.centers:
            images = torch.stack([pooled(w, x, config.vision) for x in tokens])
            seen["head"] = head_logits(w, "head", images)
        if masked is not None:
            logits = head_logits(w, "patch_head", tokens)
            seen["patch_head"] = at(logits, masked)
        return seen

    def targets(self, head, logits):
        d = self.config.distillation
        if d.centering == "sinkhorn":
            targets = balanced(logits.flatten(0, -2), d.teacher_temp).view_as(logits)
        else:
            targets = softmax((logits - self.centers[head]) / d.teacher_temp)
        if not d.is_shuffled:
            return targets

        # Each image has those of the one before it in a random cycle.
        rng = np.random.default_rng([self.config.seed, self.number])
        cycle = rng.permutation(targets.shape[1])
        moved = targets.clone()
        for i, image in enumerate(cycle):
            moved[:, image] = targets[:, cycle[i - 1]]
        return moved

    def distillation(self, w, views, targets):
        """The mean of the cross-entropies of all pairs (teacher's view, another student's view)."""
        d, config = self.config.distillation, self.config.vision
        shown = dict(enumerate(views["global"])) if d.pairs == "local+global" else {}
        shown |= {f"local {i}": x for i, x in enumerate(views.get("local", ()))}
        logs = {
            view: log_softmax(head_logits(w, "head", of_image(w, x, config)) / d.student_temp)
            for view, x in shown.items()
        }
        pairs = [
            -(p * log).sum(-1).mean()
            for t, p in enumerate(targets)
            for view, log in logs.items()
            if view != t
        ]
        return sum(pairs) / len(pairs)

    def masked(self, w, views, masked, targets):
        """The mean over the masked places of all views."""
        rows = [
            patch_tokens(w, x, self.config.vision, m) for x, m in zip(views, masked, strict=True)
        ]
        logits = at(head_logits(w, "patch_head", torch.stack(rows)), masked)
        logs = log_softmax(logits / self.config.distillation.student_temp)
        return -(targets * logs).sum(-1).mean()

    def update(self, gradients, factor):
        """A decoupled decay that at the peak rate is ``weight_decay`` a step (big_vision)."""
        o, config = self.config.optim, self.config
        depth = {"vision": config.vision.depth, "text": config.text.depth}
        for name, gradient in gradients.items():
            weight = self.weights[name]
            lr = rate(self.number, config) * o.layer_decay ** layers_above(name, depth)
            decay = o.weight_decay * lr / o.lr if decays(name, weight) else 0
            move = self.optimizer(name, factor * gradient)
            self.weights[name] = (1 - decay) * weight - lr * move

        # The ceiling of CLIP and open_clip.
        if highest := config.contrastive.max_scale:
            self.weights["log_scale"] = self.weights["log_scale"].clamp(max=math.log(highest))

    def follow(self, seen):
        """Teacher, centres and average, after the weights have moved."""
        m = momentum(self.number, self.config)
        self.teacher = blend(self.teacher, self.weights, m)
        if self.config.distillation.centering == "mean":
            c = self.config.distillation.center_momentum
            for head, logits in seen.items():
                mean = logits.flatten(0, -2).mean(0)
                self.centers[head] = c * self.centers[head] + (1 - c) * mean
        m = min(self.config.average_momentum, (1 + self.number) / (10 + self.number))
        self.average = blend(self.average, self.weights, m)


def blend(old, new, m):
    return {name: m * value + (1 - m) * new[name] for name, value in old.items()}


def at(rows, places):
    """[V, B, N, K], [V, B, n] -> [V, B, n, K]."""
    return torch.stack(
        [
            torch.stack([row[p] for row, p in zip(view, places_of, strict=True)])
            for view, places_of in zip(rows, places, strict=True)
        ]
    )
