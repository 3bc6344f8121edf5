#!/usr/bin/env python3
"""Makes solvers.json: where 100 steps of each solver lead, by PyTorch's optimizers in float64, or by formulas written out
with numpy where PyTorch has none (Torch7's Adam, LARS, LAMB).

    python3 solvers.py > solvers.json        # torch 2.11, numpy

Three tensors: `w` (a matrix of 24), `gamma` and `bias` (vectors of 5). Two problems: a quadratic, whose gradient
depends on the parameters (its minimum is too far for 100 steps: around it a rule that divides by the gradient's own size
jumps from side to side, and rounding would decide where to), and a given sequence of gradients. All inputs are small fractions of powers of two, so every
program has the same ones.
"""
import json

import numpy as np
import torch

SIZES = {"w": 24, "gamma": 5, "bias": 5}
STEPS = 100


def start():
    values, at = {}, 0
    for name, size in SIZES.items():
        values[name] = np.array([((i * 37 + 11) % 101 - 50) / 64 for i in range(at, at + size)])
        at += size
    return values


def gradients(problem, params, step):
    out, at = {}, 0
    for name, size in SIZES.items():
        index = np.arange(at, at + size)
        if problem == "quadratic":
            p = params[name]
            out[name] = (0.5 + (index % 7) * 0.25) * (p - 4) + 0.125 * np.roll(p, 1)
        else:
            out[name] = ((index * 53 + step * 29) % 97 - 48) / 128
        at += size
    return out


def rate(lr, step):
    return lr * (1 - step / 256)


def by_torch(make, decay_vectors):
    def run(problem, lr, decay):
        params = {n: torch.nn.Parameter(torch.from_numpy(v.copy())) for n, v in start().items()}
        groups = [
            {"params": [params["w"]], "weight_decay": decay},
            {"params": [params["gamma"], params["bias"]], "weight_decay": decay if decay_vectors else 0.0},
        ]
        optimizer = make(groups, lr)
        for step in range(1, STEPS + 1):
            now = gradients(problem, {n: p.detach().numpy() for n, p in params.items()}, step)
            for name, p in params.items():
                p.grad = torch.from_numpy(now[name])
            for group in optimizer.param_groups:
                group["lr"] = rate(lr, step)
            optimizer.step()
        return {n: p.detach().numpy() for n, p in params.items()}

    return run


def by_hand(update, decay_vectors):
    def run(problem, lr, decay):
        params, memory = start(), {n: {} for n in SIZES}
        for step in range(1, STEPS + 1):
            now = gradients(problem, params, step)
            for name in SIZES:
                own = name == "w" or decay_vectors
                params[name] = update(params[name], now[name], memory[name], step, rate(lr, step), decay if own else 0.0, own)
        return params

    return run


def moments(g, memory, b1=0.9, b2=0.999):
    memory["m"] = b1 * memory.get("m", 0 * g) + (1 - b1) * g
    memory["v"] = b2 * memory.get("v", 0 * g) + (1 - b2) * g * g
    return memory["m"], memory["v"]


def torch7_adam(p, g, memory, step, lr, decay, own):
    m, v = moments(g + decay * p, memory)
    size = lr * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    return p - size * m / (np.sqrt(v) + 1e-3)


def torch7_rmsprop(p, g, memory, step, lr, decay, own):
    g = g + decay * p
    memory["v"] = 0.9 * memory.get("v", 0 * g) + 0.1 * g * g
    return p - lr * g / (np.sqrt(memory["v"]) + 1e-8)


def torch7_adagrad(p, g, memory, step, lr, decay, own):
    memory["v"] = memory.get("v", 0 * g) + g * g
    return p - lr * g / (np.sqrt(memory["v"]) + 1e-10)


def torch7_adadelta(p, g, memory, step, lr, decay, own):
    memory["v"] = 0.3 * memory.get("v", 0 * g) + 0.7 * g * g
    delta = np.sqrt(memory.get("a", 0 * g) + 1e-6) / np.sqrt(memory["v"] + 1e-6) * g
    memory["a"] = 0.3 * memory.get("a", 0 * g) + 0.7 * delta * delta
    return p - delta


def lars(p, g, memory, step, lr, decay, own):
    a, b = np.linalg.norm(p), np.linalg.norm(g)
    ratio = 0.02 * a / (b + decay * a) if own and a > 0 and b > 0 else 1.0
    d = ratio * (g + decay * p)
    memory["v"] = 0.9 * memory.get("v", 0 * g) + d
    return p - lr * memory["v"]


def lamb(p, g, memory, step, lr, decay, own):
    m, v = moments(g, memory)
    u = (m / (1 - 0.9**step)) / (np.sqrt(v / (1 - 0.999**step)) + 1e-6) + decay * p
    a, b = np.linalg.norm(p), np.linalg.norm(u)
    return p - lr * (a / b if own and a > 0 and b > 0 else 1.0) * u


O = torch.optim
# name: the recipe's [optim] keys, rate, decay, run
CASES = [
    ("sgd", {"momentum": 0.0, "nesterov": False}, 0.05, 0.0, by_torch(lambda p, lr: O.SGD(p, lr), True)),
    ("sgd", {"momentum": 0.9, "nesterov": False}, 0.05, 0.01, by_torch(lambda p, lr: O.SGD(p, lr, momentum=0.9), True)),
    ("sgd", {"momentum": 0.9, "nesterov": False, "dampening": 0.3}, 0.05, 0.0,
     by_torch(lambda p, lr: O.SGD(p, lr, momentum=0.9, dampening=0.3), True)),
    ("sgd", {"momentum": 0.9, "nesterov": True}, 0.05, 0.01,
     by_torch(lambda p, lr: O.SGD(p, lr, momentum=0.9, nesterov=True), True)),
    ("sgd", {"momentum": 0.9, "nesterov": True, "decay_vectors": False}, 0.05, 0.1,
     by_torch(lambda p, lr: O.SGD(p, lr, momentum=0.9, nesterov=True), False)),
    ("rmsprop", {"alpha": 0.9}, 0.01, 0.0, by_torch(lambda p, lr: O.RMSprop(p, lr, alpha=0.9), True)),
    ("rmsprop", {"alpha": 0.99, "eps": 0.001}, 0.01, 0.01, by_torch(lambda p, lr: O.RMSprop(p, lr, alpha=0.99, eps=1e-3), True)),
    ("adagrad", {}, 0.1, 0.0, by_torch(lambda p, lr: O.Adagrad(p, lr), True)),
    ("adadelta", {"rho": 0.9}, 1.0, 0.0, by_torch(lambda p, lr: O.Adadelta(p, lr, rho=0.9), True)),
    ("adadelta", {"rho": 0.3}, 0.5, 0.01, by_torch(lambda p, lr: O.Adadelta(p, lr, rho=0.3), True)),
    ("adam", {}, 0.01, 0.0, by_torch(lambda p, lr: O.Adam(p, lr), True)),
    ("adam", {"beta1": 0.8, "beta2": 0.99, "eps": 0.001}, 0.01, 0.01,
     by_torch(lambda p, lr: O.Adam(p, lr, betas=(0.8, 0.99), eps=1e-3), True)),
    ("adamw", {"decay_vectors": False}, 0.01, 0.1, by_torch(lambda p, lr: O.AdamW(p, lr), False)),
    ("adam", {"formula": "torch7", "eps": 0.001}, 0.01, 0.01, by_hand(torch7_adam, True)),
    ("rmsprop", {"formula": "torch7"}, 0.01, 0.01, by_hand(torch7_rmsprop, True)),
    ("adagrad", {"formula": "torch7"}, 0.1, 0.0, by_hand(torch7_adagrad, True)),
    ("adadelta", {"formula": "torch7", "one": True}, 1.0, 0.0, by_hand(torch7_adadelta, True)),
    ("lars", {"momentum": 0.9, "nesterov": False, "trust": 0.02}, 0.5, 0.01, by_hand(lars, True)),
    ("lars", {"momentum": 0.9, "nesterov": False, "trust": 0.02, "decay_vectors": False}, 0.5, 0.01, by_hand(lars, False)),
    ("lamb", {}, 0.01, 0.01, by_hand(lamb, True)),
    ("lamb", {"decay_vectors": False}, 0.01, 0.1, by_hand(lamb, False)),
]

print("[")
for i, (solver, keys, lr, decay, run) in enumerate(CASES):
    # Torch7's Adadelta has no rate: its steps are all of rate 1.
    constant = keys.pop("one", False)
    ends = {problem: {n: v.tolist() for n, v in run(problem, lr, decay).items()} for problem in ("quadratic", "given")}
    line = {"optim": {"solver": solver, "weight_decay": decay, **keys}, "lr": lr, "constant": constant, **ends}
    print(json.dumps(line) + ("," if i + 1 < len(CASES) else ""))
print("]")
