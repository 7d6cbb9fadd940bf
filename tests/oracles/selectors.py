"""The methods that LTRP is compared with, each from its paper's text, in loops over patches."""

from __future__ import annotations

import math

import numpy as np

from oracles.vit import after_mlp, array, attend, first_tokens, gelu, linear, mlp, norm, softmax


def class_attention(vit, image):
    """DINO: the last block's attention of the class token, (heads, L)."""
    x = first_tokens(vit, image)
    for block in vit.blocks:
        heads, _, behind = attend(block, x)
        x = after_mlp(block, behind)
    return heads[:, 0, 1:]


def votes(attention, keep):
    found = [0] * attention.shape[1]
    for head in attention:
        shares = head / head.sum()
        for patch, share in enumerate(shares):
            # Of equal ones the lower index comes first.
            mass = sum(s for j, s in enumerate(shares) if s < share or (s == share and j <= patch))
            found[patch] += mass > 1 - keep / len(shares)
    return found


def rollout(vit, image):
    x = first_tokens(vit, image)
    reached = np.eye(len(x))
    for block in vit.blocks:
        heads, _, behind = attend(block, x)
        x = after_mlp(block, behind)
        reached = (0.5 * sum(heads) / len(heads) + 0.5 * np.eye(len(x))) @ reached
    return reached[0, 1:]


def grad_cam(vit, image):
    """By difference quotients of the best logit by every feature."""
    x = first_tokens(vit, image)
    *early, last = vit.blocks
    for block in early:
        x = after_mlp(block, attend(block, x)[2])

    def logits(features):
        layer, count = last.attn, len(features)
        qkv = linear(layer.qkv, features).reshape(count, 3, layer.num_heads, -1)
        outs = []
        for h in range(layer.num_heads):
            q, k, v = (qkv[:, part, h] for part in range(3))
            outs.append(
                np.array([softmax(list(row)) for row in q @ k.T / math.sqrt(k.shape[1])]) @ v
            )
        behind = x + linear(layer.proj, np.concatenate(outs, axis=1))
        return linear(vit.head, norm(vit.norm, after_mlp(last, behind)[0]))[0]

    features = norm(last.norm1, x)
    best = int(np.argmax(logits(features)))
    step, gradient = 1e-5, np.zeros_like(features)
    for place in np.ndindex(*features.shape):
        up, down = features.copy(), features.copy()
        up[place] += step
        down[place] -= step
        gradient[place] = (logits(up)[best] - logits(down)[best]) / (2 * step)
    return features[1:] @ gradient[1:].mean(axis=0)


def evit(vit, image, keep):
    x = first_tokens(vit, image)
    length, depth = len(x) - 1, len(vit.blocks)
    share = (keep / length) ** (1 / 3)
    cls, rest = x[0], [(patch, token) for patch, token in enumerate(x[1:])]
    survived, last = [0] * length, [0.0] * length
    for number, block in enumerate(vit.blocks):
        heads, _, behind = attend(block, np.array([cls, *(token for _, token in rest)]))
        cls, rest = behind[0], [(p, t) for (p, _), t in zip(rest, behind[1:], strict=True)]
        if number in (depth // 4, depth // 2, 3 * depth // 4):
            seen = heads.mean(axis=0)[0, 1:]
            for (patch, _), a in zip(rest, seen, strict=True):
                if patch is not None:
                    last[patch] = a
            order = sorted(range(len(rest)), key=lambda i: -seen[i])
            count = math.ceil(round(share * len(rest), 9))
            fused = sum((seen[i] * rest[i][1] for i in order[count:]), np.zeros_like(cls))
            has_rejects = count < len(rest)
            rest = [rest[i] for i in order[:count]]
            for patch, _ in rest:
                if patch is not None:
                    survived[patch] += 1
            if has_rejects:
                rest.append((None, fused))
        x = after_mlp(block, np.array([cls, *(token for _, token in rest)]))
        cls, rest = x[0], [(p, t) for (p, _), t in zip(rest, x[1:], strict=True)]
    return sorted(range(length), key=lambda p: (-survived[p], -last[p], p))[:keep]


def dynamicvit(vit, image, keep):
    x = first_tokens(vit, image)
    length, depth = len(x) - 1, len(vit.blocks)
    left = list(range(length))
    stage = 0
    for number, block in enumerate(vit.blocks):
        if number in (depth // 4, depth // 2, 3 * depth // 4):
            predictor = vit.score_predictor[stage]
            inner = gelu(linear(predictor.in_conv[1], norm(predictor.in_conv[0], x[1:])))
            half = inner.shape[1] // 2
            mean = inner[:, half:].mean(axis=0)
            both = np.array([np.concatenate([row[:half], mean]) for row in inner])
            for place in (0, 2, 4):
                both = linear(predictor.out_conv[place], both)
                both = gelu(both) if place < 4 else both
            scores = [math.log(softmax(list(row))[0]) for row in both]
            stage += 1
            count = max(keep, math.floor(round(length * (keep / length) ** (stage / 3), 9)))
            count = keep if stage == 3 else count
            best = sorted(range(len(left)), key=lambda i: -scores[i])[:count]
            left = [left[i] for i in best]
            if stage == 3:
                return left
            x = np.array([x[0], *(x[1 + i] for i in best)])
        x = after_mlp(block, attend(block, x)[2])
    raise AssertionError


def ia_red2(vit, image):
    x = first_tokens(vit, image)
    length, depth, width = len(x) - 1, len(vit.blocks), x.shape[1]
    passed, last, is_in = [0] * length, [0.0] * length, [True] * length
    for group in range(3):
        agent = vit.groups[group].agent
        plain = np.array([(r - r.mean()) / math.sqrt(r.var() + 1e-5) for r in x])
        qkv = linear(agent.qk, plain).reshape(len(x), 3, agent.heads, -1)
        for patch in range(length):
            if is_in[patch]:
                fits = [
                    1 / (1 + math.exp(-float(qkv[0, 0, h] @ qkv[1 + patch, 1, h])
                                      / math.sqrt(width // agent.heads)))
                    for h in range(agent.heads)
                ]  # fmt: skip
                last[patch] = sum(fits) / len(fits)
                is_in[patch] = last[patch] > 0.5
                passed[patch] += is_in[patch]
        stays = np.array([True, *is_in])
        x = x * stays[:, None]
        for block in vit.blocks[depth * group // 3 : depth * (group + 1) // 3]:
            x = after_mlp(block, attend(block, x, allowed=stays)[2]) * stays[:, None]
    return [p + a for p, a in zip(passed, last, strict=True)]


def tome(vit, image, keep):
    x = first_tokens(vit, image)
    groups = [set()] + [{patch} for patch in range(len(x) - 1)]
    depth = len(vit.blocks)
    for number, block in enumerate(vit.blocks):
        sizes = [max(1, len(group)) for group in groups]
        _, keys, x = attend(block, x, sizes=sizes)
        metric = keys.mean(axis=0)
        of_patch = {p: metric[i] for i, group in enumerate(groups) for p in group}
        while (more := len(groups) - 1 - keep) > 0:
            count = math.ceil(more / (depth - number))
            x, metric, groups = _merge(x, metric, groups, count)
            if number < depth - 1:
                break
        x = after_mlp(block, x)
    found = []
    for group in groups[0:]:
        if not group:
            continue
        mean = sum(of_patch[p] for p in group) / len(group)
        near = {p: _cosine(of_patch[p], mean) for p in group}
        found.append((-len(group), min(group, key=lambda p: (-near[p], p))))
    return [patch for _, patch in sorted(found)]


def _cosine(a, b):
    return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))


def _merge(x, metric, groups, count):
    sides = list(range(0, len(x), 2)), list(range(1, len(x), 2))
    wishes = []
    for a in sides[0]:
        if a == 0:
            continue
        like = [_cosine(metric[a], metric[b]) for b in sides[1]]
        wishes.append((-max(like), a, sides[1][like.index(max(like))]))
    into = {a: b for _, a, b in sorted(wishes)[:count]}
    members = {i: [i] for i in range(len(x)) if i not in into}
    for a, b in into.items():
        members[b].append(a)
    order = [a for a in sides[0] if a not in into] + sides[1]
    size = [max(1, len(group)) for group in groups]

    def mean(values):
        return np.array([
            sum(size[i] * values[i] for i in members[t]) / sum(size[i] for i in members[t])
            for t in order
        ])  # fmt: skip

    joined = [set().union(*(groups[i] for i in members[t])) for t in order]
    return mean(x), mean(metric), joined


def adavit(net, image):
    """Open gates of the last half of the blocks, and their mean before rounding."""
    x = first_tokens(net, image)
    width = x.shape[1]
    hard, soft = [], []
    for number, block in enumerate(net.blocks):
        attn = block.attn
        channels, halves = np.ones(width), (1.0, 1.0)
        if number > 0:
            heads = [z > 0 for z in linear(block.head_select.mlp_head, x[0])]
            channels = np.repeat(np.array(heads, dtype=float), width // len(heads))
            halves = [float(z > 0) for z in linear(block.layer_select.mlp_head, x[0])]
        plain = norm(block.norm1, x)
        gates = [
            1 / (1 + math.exp(-float(z)))
            for z in linear(attn.token_select.mlp_head, plain[1:])[:, 0]
        ]
        uses = [True, *(g > 0.6 for g in gates)]
        q, k, v = (linear(layer, plain) * channels for layer in (attn.query, attn.key, attn.value))
        size = width // attn.heads
        mixed = np.zeros_like(x)
        for h in range(attn.heads):
            part = slice(h * size, (h + 1) * size)
            for i in range(len(x)):
                seen = [j for j in range(len(x)) if j == i or (uses[i] and uses[j])]
                weights = softmax([float(q[i, part] @ k[j, part]) / math.sqrt(size) for j in seen])
                mixed[i, part] = sum(w * v[j, part] for w, j in zip(weights, seen, strict=True))
        out = linear(attn.proj, mixed * channels)
        x = x + halves[0] * np.array(uses)[:, None] * out
        out = mlp(block.mlp, norm(block.norm2, x) * channels)
        x = x + halves[1] * np.array(uses)[:, None] * out
        hard.append(uses[1:])
        soft.append(gates)
    half = len(hard) // 2
    return np.sum(hard[half:], axis=0) + np.mean(soft[half:], axis=0)


def dge(net, image):
    """Keys like the class token's, of a view with a patch of zeros on every side: (L,) inside."""
    p = net.sizes.patch
    padded = np.pad(array(image), ((0, 0), (p, p), (p, p)))
    x = first_tokens(net, _Like(padded))
    g, heads = net.sizes.grid, net.sizes.heads
    for block in net.blocks[:-1]:
        cells = x[1:].reshape(g, g, -1)
        asked, owners = [x[0]], [None]
        for top in range(0, g, 4):
            for left in range(0, g, 4):
                region = cells[top : top + 4, left : left + 4]
                grain = int(np.argmax(linear(block.dge.router.gate, region.mean(axis=(0, 1)))))
                step = (1, 2, 4)[grain]
                for a in range(0, 4, step):
                    for b in range(0, 4, step):
                        asked.append(region[a : a + step, b : b + step].mean(axis=(0, 1)))
                        owners.append([(top + a + i, left + b + j)
                                       for i in range(step) for j in range(step)])  # fmt: skip
        asked = np.array(asked)
        kv = linear(block.attn.kv, norm(block.norm1, x)).reshape(len(x), 2, heads, -1)
        q = linear(block.attn.q, norm(block.norm1, asked)).reshape(len(asked), heads, -1)
        outs = []
        for h in range(heads):
            logits = q[:, h] @ kv[:, 0, h].T / math.sqrt(q.shape[2])
            outs.append(np.array([softmax(list(row)) for row in logits]) @ kv[:, 1, h])
        found = asked + linear(block.attn.proj, np.concatenate(outs, axis=1))
        change = found + mlp(block.mlp, norm(block.norm2, found)) - asked
        x = x.copy()
        x[0] += change[0]
        for owner, delta in zip(owners[1:], change[1:], strict=True):
            for row, column in owner:
                x[1 + row * g + column] += delta
    last = net.blocks[-1]
    keys = linear(last.attn.kv, norm(last.norm1, x)).reshape(len(x), 2, heads, -1)[:, 0]
    inside = [1 + r * g + c for r in range(1, g - 1) for c in range(1, g - 1)]
    return [sum(float(keys[0, h] @ keys[i, h]) for h in range(heads)) / heads for i in inside]


class _Like:
    """An array that is asked for as a tensor is."""

    def __init__(self, values):
        self.values = values

    def detach(self):
        return self

    double = detach

    def numpy(self):
        return self.values


def seen_pixels(corners, window, grid, patch):
    """How many pixels of each patch the windows hold, over all windows, as a share."""
    found = []
    for row in range(grid):
        for column in range(grid):
            count = 0
            for top, left in corners:
                for y in range(row * patch, (row + 1) * patch):
                    for x in range(column * patch, (column + 1) * patch):
                        count += top <= y < top + window and left <= x < left + window
            found.append(count / patch**2)
    return found
