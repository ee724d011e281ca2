"""PyTorch's CPU build as the peer of `nexus-bench cpu`: one MoE layer, f32, from (x, router logits) to y.

A server: one JSON object a line on stdin, one on stdout, so that the caller can time its own layer and these in turn, in one run on
one machine with the same number of threads. Weights, inputs and logits come as raw little-endian float32 files of the caller's.

    {"op": "weights", "w1": FILE, "w2": FILE, "hidden": H, "inter": I, "experts": E, "topK": K}
    {"op": "inputs", "x": [FILE, ...], "logits": [FILE, ...], "tokens": T}
    {"op": "check", "peer": NAME, "input": 0, "out": FILE}       the layer's output, for the caller to compare
    {"op": "time", "peer": NAME, "calls": N}                     -> {"us": per call}, inputs taken in turn
    {"op": "gemm", "library": NAME, "calls": N}                  -> {"us": per call} of the experts' products alone by cblas_sgemm
    {"op": "end"}

Peers: `loop` is the loop over experts of Hugging Face's models; `bmm` sorts the slots and runs batched products over rows padded to the fullest
expert; `grouped_mm` is torch's own grouped product, where its CPU build has it. All have the gate and up halves side by side and W as
nn.Linear keeps it, and compute nothing for experts that got no token (bmm: the products run over the experts that were hit).
"""

import ctypes
import json
import os
import shutil
import sys
import tempfile
import time

import numpy as np
import torch
import torch.nn.functional as F


def routed(logits, top_k):
    weights, ids = torch.topk(torch.softmax(logits, -1), top_k, -1)
    return weights / weights.sum(-1, keepdim=True), ids


def gated(product):
    gate, up = product.chunk(2, -1)
    return F.silu(gate) * up


class Layer:
    def __init__(self, w1, w2, top_k):
        self.w1, self.w2, self.top_k = w1, w2, top_k
        self.w1t, self.w2t = w1.transpose(1, 2), w2.transpose(1, 2)

    def loop(self, x, logits):
        weights, ids = routed(logits, self.top_k)
        out = torch.zeros_like(x)
        for expert in torch.unique(ids).tolist():
            token, slot = torch.where(ids == expert)
            rows = F.linear(gated(F.linear(x[token], self.w1[expert])), self.w2[expert])
            out.index_add_(0, token, rows * weights[token, slot, None])
        return out

    def sorted_slots(self, ids):
        flat = ids.flatten()
        order = torch.argsort(flat, stable=True)
        return order, torch.bincount(flat, minlength=self.w1.shape[0])

    def summed(self, rows, order, weights, x):
        slots = torch.empty_like(rows)
        slots[order] = rows
        return torch.bmm(weights[:, None, :], slots.view(x.shape[0], self.top_k, -1))[:, 0]

    def bmm(self, x, logits):
        weights, ids = routed(logits, self.top_k)
        order, counts = self.sorted_slots(ids)
        hit = torch.nonzero(counts)[:, 0]
        counts = counts[hit]
        start = torch.cumsum(counts, 0) - counts
        which = torch.repeat_interleave(torch.arange(len(hit)), counts)
        at = torch.arange(len(order)) - start[which]
        padded = x.new_zeros(len(hit), int(counts.max()), x.shape[1])
        padded[which, at] = x[order // self.top_k]
        if len(hit) == self.w1.shape[0]:
            y = torch.bmm(gated(torch.bmm(padded, self.w1t)), self.w2t)
        elif len(hit) * 4 <= self.w1.shape[0]:
            # Gathering whole experts would cost more than their products: views of those that were hit.
            y = torch.stack([gated(p @ self.w1t[e]) @ self.w2t[e] for p, e in zip(padded, hit.tolist())])
        else:
            full = x.new_zeros(self.w1.shape[0], padded.shape[1], x.shape[1])
            full[hit] = padded
            y = torch.bmm(gated(torch.bmm(full, self.w1t)), self.w2t)[hit]
        return self.summed(y[which, at], order, weights, x)

    def grouped_mm(self, x, logits):
        weights, ids = routed(logits, self.top_k)
        order, counts = self.sorted_slots(ids)
        ends = torch.cumsum(counts, 0).to(torch.int32)
        rows = x[order // self.top_k]
        rows = F.grouped_mm(gated(F.grouped_mm(rows, self.w1t, offs=ends)), self.w2t, offs=ends)
        return self.summed(rows, order, weights, x)


class Blas:
    """cblas_sgemm of OpenBLAS, loaded by name. `core` makes it use that core's kernels (it chooses when it is loaded): a copy of the file is a
    library of its own to the loader, so that several can be there."""

    def __init__(self, path, core, threads):
        with tempfile.TemporaryDirectory() as folder:
            if core != 'auto':
                os.environ['OPENBLAS_CORETYPE'] = core
                path = shutil.copy(path, os.path.join(folder, f'libopenblas-{core}.so'))
            library = ctypes.CDLL(path)
            os.environ.pop('OPENBLAS_CORETYPE', None)
        library.openblas_set_num_threads(threads)
        library.openblas_get_corename.restype = ctypes.c_char_p
        library.openblas_get_config.restype = ctypes.c_char_p
        self.name = f'{library.openblas_get_config().decode()}; core {library.openblas_get_corename().decode()}'
        self.sgemm = library.cblas_sgemm
        self.sgemm.argtypes = (
            [ctypes.c_int] * 6 + [ctypes.c_float] + [ctypes.c_void_p, ctypes.c_int] * 2 + [ctypes.c_float, ctypes.c_void_p, ctypes.c_int]
        )

    def linear(self, m, x, w, y):
        """y[m, n] = x[m, k] w[n, k]T, row-major."""
        n, k = w.shape
        self.sgemm(101, 111, 112, m, n, k, 1.0, x, k, w.data_ptr(), k, 0.0, y, n)


class Server:
    def __init__(self, threads, openblas, cores):
        self.blas = {f'openblas-{core}': Blas(openblas, core, threads) for core in cores} if openblas else {}
        self.layer = self.x = self.logits = None
        self.turn = 0

    def hello(self):
        have = ['loop', 'bmm'] + (['grouped_mm'] if hasattr(F, 'grouped_mm') else [])
        return {
            'torch': torch.__version__,
            'capability': torch.backends.cpu.get_cpu_capability(),
            'threads': torch.get_num_threads(),
            'peers': have,
            'blas': {name: blas.name for name, blas in self.blas.items()},
        }

    def weights(self, w1, w2, hidden, inter, experts, topK):
        self.layer = self.x = self.logits = None
        first = torch.from_numpy(np.fromfile(w1, np.float32)).view(experts, inter, 2, hidden)
        second = torch.from_numpy(np.fromfile(w2, np.float32)).view(experts, hidden, inter)
        first = first.transpose(1, 2).reshape(experts, 2 * inter, hidden).contiguous()
        self.layer = Layer(first, second, topK)
        return {}

    def inputs(self, x, logits, tokens):
        read = lambda names: [torch.from_numpy(np.fromfile(n, np.float32)).view(tokens, -1) for n in names]
        self.x, self.logits, self.turn = read(x), read(logits), 0
        return {}

    def run(self, peer, i):
        return getattr(self.layer, peer)(self.x[i], self.logits[i])

    def check(self, peer, input, out):
        self.run(peer, input).numpy().astype(np.float32).tofile(out)
        return {}

    def timed(self, calls, step):
        n = len(self.x)
        start = time.perf_counter()
        for _ in range(calls):
            step(self.turn % n)
            self.turn += 1
        return {'us': (time.perf_counter() - start) / calls * 1e6}

    def time(self, peer, calls):
        return self.timed(calls, lambda i: self.run(peer, i))

    def gemm(self, library, calls):
        """The experts' products of each input on rows that lie sorted, without activation or sums."""
        blas = self.blas[library]
        work = []
        for x, logits in zip(self.x, self.logits):
            _, ids = routed(logits, self.layer.top_k)
            order, counts = self.layer.sorted_slots(ids)
            work.append((x[order // self.layer.top_k].contiguous(), counts.tolist()))
        experts, two, hidden = self.layer.w1.shape
        inner = torch.empty(work[0][0].shape[0], two)
        half = torch.randn(work[0][0].shape[0], two // 2)
        out = torch.empty_like(work[0][0])

        def step(i):
            rows, counts = work[i]
            at = 0
            for expert, count in enumerate(counts):
                if count:
                    blas.linear(count, rows[at:].data_ptr(), self.layer.w1[expert], inner[at:].data_ptr())
                    blas.linear(count, half[at:].data_ptr(), self.layer.w2[expert], out[at:].data_ptr())
                at += count

        step(0)
        return self.timed(calls, step)


def main():
    import argparse

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--threads', type=int, required=True)
    parser.add_argument('--openblas', default='')
    parser.add_argument('--openblas-cores', default='auto')
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    server = Server(given.threads, given.openblas, given.openblas_cores.split(','))
    print(json.dumps(server.hello()), flush=True)
    with torch.inference_mode():
        for line in sys.stdin:
            request = json.loads(line)
            op = request.pop('op')
            if op == 'end':
                return
            try:
                answer = {'weights': server.weights, 'inputs': server.inputs, 'check': server.check, 'time': server.time, 'gemm': server.gemm}[op](**request)
            except Exception as error:  # the caller names the peer that failed and goes on
                answer = {'error': f'{type(error).__name__}: {error}'}
            print(json.dumps(answer), flush=True)


if __name__ == '__main__':
    main()
