#!/usr/bin/env python3
"""Times the MoE forward (and a little of the backward) of runnable peers on one GPU, offline.

  python3 bench_peers.py                       # default shapes and token counts, under 8 minutes
  python3 bench_peers.py --shapes qwen3-30b-a3b,mixtral-8x7b --tokens 1,8,64,4096 --json peers.json
  python3 bench_peers.py --shape mine:2048:768:128:8 --tokens 1,32 --peers vllm_triton,torch_grouped_mm
  python3 bench_peers.py --train --shapes qwen3-30b-a3b --tokens 8192      # forward + backward, eager
  python3 bench_peers.py --selftest                                        # tiny, on the CPU, no timing

Needs torch, triton, transformers; no vllm or sglang. Each peer:
  experts scope: x, top-k weights and ids -> y      layer scope: x, router logits (fp32) -> y
(the router's own matrix product is in neither). Router: softmax, top-k, renormalised; activation silu(gate)*up.
Correctness first: relative error (Frobenius) against fp32 on fresh random input; then the median time of CUDA-graph
replays and of eager calls. Calls rotate over enough inputs, hence routed experts, that the weights they touch add up to
3 x L2 (60 MB); the weights themselves are copied only where all experts together are smaller than that.
'det' = two calls gave the same bits; 'binv' = row 0 alone gave the same bits as row 0 in the batch.
A peer that throws is reported and passed over; one that kills the CUDA context or hangs is dropped and the rest goes on
in a fresh process.
"""
import argparse
import json
import math
import os
import subprocess
import sys
import time
import traceback

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)

#                     hidden  inter  experts top-k
SHAPES = {
    "qwen3-30b-a3b":     (2048, 768, 128, 8),
    "mixtral-8x7b":      (4096, 14336, 8, 2),
    "olmoe-1b-7b":       (2048, 1024, 64, 8),
    "deepseek-v2-lite":  (2048, 1408, 64, 6),
    "gpt-oss-20b":       (2880, 2880, 32, 4),
    "gpt-oss-120b":      (2880, 2880, 128, 4),
    "qwen3-235b-a22b":   (4096, 1536, 128, 8),
    "qwen3-next-80b":    (2048, 512, 512, 10),
    "glm-4.5-air":       (4096, 1408, 128, 8),
    "llama4-scout":      (5120, 8192, 16, 1),
    "mixtral-8x22b":     (6144, 16384, 8, 2),
    "deepseek-v3":       (7168, 2048, 256, 8),
    "kimi-k2":           (7168, 2048, 384, 8),
    # the bf16 configurations of SonicMoE's figure on H100 (use --tokens 24576 / 32768)
    "sonic-7b-n256":     (1536, 256, 128, 8),
    "sonic-7b-n1024":    (1536, 1024, 32, 2),
    "sonic-30b-n512":    (4096, 512, 128, 8),
    "sonic-30b-n1024":   (4096, 1024, 64, 4),
    "sonic-120b-n1024":  (4096, 1024, 128, 8),
    "sonic-120b-n2048":  (4096, 2048, 64, 4),
}
DEFAULT_SHAPES = "qwen3-30b-a3b,mixtral-8x7b,olmoe-1b-7b,gpt-oss-20b,deepseek-v2-lite"
DEFAULT_TOKENS = "1,8,64,512,4096,16384"
HBM = 4.3e12      # bytes/s, copy, as measured on an H200
PEAK = 790e12     # bf16 FLOP/s, 8192^3 product, likewise
L2 = 60 * 2 ** 20
TOL = 2e-2


# --------------------------------------------------------------------------- peers
# A peer is a class with: __init__(ctx) for what may fail early (imports, weight layouts), experts(x, r, c) and
# layer(x, logits, c); x [T,H], r = Routing, c = index of the weight copy. graph = False where it reads back to the host.

class Routing:
    def __init__(self, tw, ids64):
        self.tw, self.ids64, self.ids = tw.contiguous(), ids64.contiguous(), ids64.int().contiguous()

    def head(self, n):
        return Routing(self.tw[:n], self.ids64[:n])


def torch_router(logits, k):
    import torch
    p = torch.softmax(logits, dim=-1, dtype=torch.float32)
    tw, ids = torch.topk(p, k, dim=-1)
    return tw / tw.sum(dim=-1, keepdim=True), ids


def grouped_mm(a, b, offs):
    import torch
    f = getattr(torch.nn.functional, "grouped_mm", None) or torch._grouped_mm
    return f(a, b, offs=offs)


class Peer:
    graph = True
    note = ""

    def __init__(self, ctx):
        self.ctx = ctx

    def weights(self, c):
        return self.ctx.w1[c], self.ctx.w2[c]


class NaiveLoop(Peer):
    """Textbook PyTorch: one pass over the experts, where(), two products, index_add."""
    graph = False

    def _run(self, x, tw, ids, c):
        import torch
        import torch.nn.functional as F
        w1, w2 = self.weights(c)
        y = torch.zeros_like(x)
        for e in range(w1.shape[0]):
            tok, slot = torch.where(ids == e)
            if tok.numel() == 0:
                continue
            g, u = F.linear(x[tok], w1[e]).chunk(2, dim=-1)
            h = F.linear(F.silu(g) * u, w2[e])
            y.index_add_(0, tok, (h * tw[tok, slot, None]).to(y.dtype))
        return y

    def experts(self, x, r, c):
        return self._run(x, r.tw, r.ids64, c)

    def layer(self, x, logits, c):
        return self._run(x, *torch_router(logits, self.ctx.k), c)


class TorchGroupedMM(Peer):
    """Plain torch around torch.nn.functional.grouped_mm: sort, gather, product, silu*up, product, index_add."""

    def _run(self, x, tw, ids, c):
        import torch
        import torch.nn.functional as F
        w1, w2 = self.weights(c)
        E, k = w1.shape[0], ids.shape[1]
        flat, perm = torch.sort(ids.reshape(-1))
        tok = perm // k
        hin = flat.int() if x.is_cuda else flat.float()
        offs = torch.cumsum(torch.histc(hin, bins=E, min=0, max=E - 1), 0, dtype=torch.int32)
        h = grouped_mm(x[tok], w1.transpose(1, 2), offs)
        g, u = h.chunk(2, dim=-1)
        z = grouped_mm(F.silu(g) * u, w2.transpose(1, 2), offs)
        z = z * tw.reshape(-1)[perm, None].to(z.dtype)
        return torch.zeros_like(x).index_add_(0, tok, z)

    def experts(self, x, r, c):
        return self._run(x, r.tw, r.ids64, c)

    def layer(self, x, logits, c):
        return self._run(x, *torch_router(logits, self.ctx.k), c)


class GroupedMMGlue(Peer):
    """torch grouped_mm (CUTLASS) with own Triton kernels for router, permutation, activation, combine."""

    def __init__(self, ctx):
        super().__init__(ctx)
        import common_kernels as ck
        self.ck = ck

    def _run(self, x, tw, ids, c):
        import torch
        ck = self.ck
        w1, w2 = self.weights(c)
        E, k = w1.shape[0], ids.shape[1]
        sorted_ids, _, _, offs = ck.moe_align_block_size(ids, 1, E, want_cum=True)
        xs, inv = ck.gather_rows(x, sorted_ids, k)
        h = grouped_mm(xs, w1.transpose(1, 2), offs)
        a = torch.empty((h.shape[0], w2.shape[2]), dtype=x.dtype, device=x.device)
        ck.silu_and_mul(h, a)
        z = grouped_mm(a, w2.transpose(1, 2), offs)
        return ck.combine_rows(z, inv, tw, torch.empty_like(x))

    def experts(self, x, r, c):
        return self._run(x, r.tw, r.ids, c)

    def layer(self, x, logits, c):
        return self._run(x, *self.ck.topk_softmax(logits, self.ctx.k), c)


class HF(Peer):
    """transformers' Qwen3MoeExperts with experts_implementation = impl."""
    impl = "eager"

    def __init__(self, ctx):
        super().__init__(ctx)
        import torch
        from transformers.models.qwen3_moe import modeling_qwen3_moe as m
        from transformers.models.qwen3_moe.configuration_qwen3_moe import Qwen3MoeConfig
        cfg = Qwen3MoeConfig(hidden_size=ctx.H, moe_intermediate_size=ctx.I, num_experts=ctx.E,
                             num_experts_per_tok=ctx.k, norm_topk_prob=True, hidden_act="silu",
                             num_hidden_layers=1, vocab_size=32, num_attention_heads=8, num_key_value_heads=8)
        cfg._experts_implementation = self.impl
        self.mods = []
        for w1, w2 in zip(ctx.w1, ctx.w2):
            with torch.device("meta"):
                mod = m.Qwen3MoeExperts(cfg)
            mod.gate_up_proj = torch.nn.Parameter(w1, requires_grad=False)
            mod.down_proj = torch.nn.Parameter(w2, requires_grad=False)
            self.mods.append(mod.eval())

    def experts(self, x, r, c):
        return self.mods[c](x, r.ids64, r.tw.to(x.dtype))

    def layer(self, x, logits, c):
        tw, ids = torch_router(logits, self.ctx.k)
        return self.mods[c](x, ids, tw.to(x.dtype))


class HFEager(HF):
    graph = False


class HFGrouped(HF):
    impl = "grouped_mm"


class HFBatched(HF):
    """Copies the weights of every (token, expert) pair; refused here past 8 GB of such copies."""
    impl = "batched_mm"

    def __init__(self, ctx):
        need = ctx.T * ctx.k * 3 * ctx.H * ctx.I * ctx.item
        if need > 8e9:
            raise Skip(f"would gather {need / 1e9:.0f} GB of weights")
        super().__init__(ctx)


class VllmTriton(Peer):
    """vLLM's Triton fused_experts, config as vLLM would pick it on an H200 (tuned file or default)."""

    def __init__(self, ctx):
        super().__init__(ctx)
        from vllm_moe import api
        self.api = api
        _, self.note = api.pick_config(ctx.T, ctx.E, ctx.I)
        self.config = None

    def experts(self, x, r, c):
        w1, w2 = self.weights(c)
        return self.api.fused_experts(x, w1, w2, r.tw, r.ids, self.config)

    def layer(self, x, logits, c):
        tw, ids = self.api.topk_softmax(logits, self.ctx.k)
        w1, w2 = self.weights(c)
        return self.api.fused_experts(x, w1, w2, tw, ids, self.config)


class VllmBest(VllmTriton):
    """The same kernel, best of vLLM's pick and a handful of candidates, chosen on this machine."""

    def __init__(self, ctx):
        super().__init__(ctx)
        if ctx.device != "cuda":
            return
        x, r = ctx.xs[0], ctx.rs[0]
        w1, w2 = self.weights(0)
        picked, _ = self.api.pick_config(ctx.T, ctx.E, ctx.I)
        best = None
        for cfg in [picked] + self.api.candidate_configs(ctx.T, ctx.E, ctx.k):
            try:
                fns = [lambda v=v: self.api.fused_experts(ctx.xs[v], w1, w2, ctx.rs[v].tw, ctx.rs[v].ids, cfg)
                       for v in range(len(ctx.xs))]
                t = time_graph(fns, budget_s=0.05)
            except Exception as e:      # out of shared memory and the like
                self.note = f"{type(e).__name__}"
                reset_cuda_error()
                continue
            if best is None or t < best[0]:
                best = (t, cfg)
        if best is None:
            raise RuntimeError("no candidate ran: " + self.note)
        self.config = best[1]
        c = best[1]
        self.note = "m{BLOCK_SIZE_M}n{BLOCK_SIZE_N}k{BLOCK_SIZE_K}g{GROUP_SIZE_M}w{num_warps}s{num_stages}".format(**c)


class ScatterMoE(Peer):
    """ScatterMoE's ParallelLinear pair (sort by torch; its bincount, which only the backward uses, left out of the forward)."""

    def __init__(self, ctx):
        super().__init__(ctx)
        import common_kernels as ck
        from scattermoe.parallel_experts import parallel_linear
        self.ck, self.pl = ck, parallel_linear

    def _run(self, x, tw, ids, c, w=None):
        import torch
        import torch.nn.functional as F
        w1, w2 = w or self.weights(c)
        k = ids.shape[1]
        se, ss = torch.sort(ids.reshape(-1))
        offs = self.ck.expert_offsets(ids, w1.shape[0]) if torch.is_grad_enabled() else None   # backward only
        h = self.pl(x, w1.permute(0, 2, 1), k, se, ss, offs, grouped_out=True)
        g, u = h.chunk(2, dim=-1)
        return self.pl(F.silu(g) * u, w2.permute(0, 2, 1), 1, se, ss, offs, grouped_in=True, gates=tw.to(x.dtype))

    def experts(self, x, r, c):
        return self._run(x, r.tw, r.ids, c)

    def layer(self, x, logits, c):
        return self._run(x, *self.ck.topk_softmax(logits, self.ctx.k), c)


class MegaBlocks(Peer):
    """MegaBlocks dMoE, mlp_impl='sparse' (stk block-sparse Triton kernels), GLU."""
    graph = False

    def __init__(self, ctx):
        super().__init__(ctx)
        import common_kernels as ck
        from megablocks_stk import api
        self.ck, self.api = ck, api
        self.prep = ctx.cached("megablocks", lambda: [api.prepare(a, b) for a, b in zip(ctx.w1, ctx.w2)])

    def experts(self, x, r, c):
        return self.api.forward(x, self.prep[c], r.tw, r.ids)

    def layer(self, x, logits, c):
        return self.api.forward(x, self.prep[c], *self.ck.topk_softmax(logits, self.ctx.k))


class TritonKernels(Peer):
    """OpenAI triton_kernels: routing + two matmul_ogs (gather, fused activation, scatter). Layer scope only."""
    experts = None

    def __init__(self, ctx):
        super().__init__(ctx)
        import triton_kernels_api as api
        self.api = api
        self.prep = ctx.cached("triton_kernels", lambda: [api.prepare(a, b) for a, b in zip(ctx.w1, ctx.w2)])

    def layer(self, x, logits, c):
        return self.api.layer(x, self.prep[c], logits, self.ctx.k)


class WarpDecode(Peer):
    """Own Triton take on Cursor's warp decode: two kernels over outputs, no permutation. For a few tokens."""

    def __init__(self, ctx):
        super().__init__(ctx)
        if ctx.T > 16:
            raise Skip("for at most 16 tokens")
        import common_kernels as ck
        self.ck = ck

    def experts(self, x, r, c):
        w1, w2 = self.weights(c)
        return self.ck.warp_decode(x, w1, w2, r.tw, r.ids)

    def layer(self, x, logits, c):
        w1, w2 = self.weights(c)
        return self.ck.warp_decode(x, w1, w2, *self.ck.topk_softmax(logits, self.ctx.k))


PEERS = {
    "vllm_triton": VllmTriton,
    "vllm_triton_best": VllmBest,
    "triton_kernels": TritonKernels,
    "torch_grouped_mm": TorchGroupedMM,
    "grouped_mm_glue": GroupedMMGlue,
    "scattermoe": ScatterMoE,
    "megablocks": MegaBlocks,
    "warp_decode": WarpDecode,
    "hf_grouped_mm": HFGrouped,
    "hf_batched_mm": HFBatched,
    "hf_eager": HFEager,
    "naive_loop": NaiveLoop,
}


class Skip(Exception):
    pass


# --------------------------------------------------------------------------- timing

def reset_cuda_error():
    """Raises if the CUDA context is beyond use."""
    import torch
    torch.cuda.synchronize()


def _median(v):
    v = sorted(v)
    n = len(v)
    return v[n // 2] if n % 2 else 0.5 * (v[n // 2 - 1] + v[n // 2])


def time_graph(fns, budget_s=0.15):
    """Median microseconds of one call, from replays of a graph that holds all of fns (repeated if short)."""
    import torch
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            for f in fns:
                f()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    t0 = time.perf_counter()
    for f in fns:
        f()
    torch.cuda.synchronize()
    per = (time.perf_counter() - t0) / len(fns)
    reps = max(1, math.ceil(8 / len(fns))) if per < 2e-3 else 1
    g = torch.cuda.CUDAGraph()
    with torch.cuda.graph(g):
        for _ in range(reps):
            for f in fns:
                f()
    calls = reps * len(fns)
    g.replay()
    torch.cuda.synchronize()
    t0 = time.perf_counter()
    g.replay()
    torch.cuda.synchronize()
    est = max(time.perf_counter() - t0, 1e-5)
    n = int(min(200, max(7, budget_s / est)))
    ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for a, b in ev:
        a.record()
        g.replay()
        b.record()
    torch.cuda.synchronize()
    return _median([a.elapsed_time(b) for a, b in ev]) * 1e3 / calls


def time_eager(fns, budget_s=0.08):
    import torch
    for f in fns:
        f()
    torch.cuda.synchronize()
    t0 = time.perf_counter()
    for f in fns:
        f()
    torch.cuda.synchronize()
    est = max((time.perf_counter() - t0) / len(fns), 1e-5)
    n = int(min(200, max(5, budget_s / est)))
    ev = [(torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)) for _ in range(n)]
    for i, (a, b) in enumerate(ev):
        a.record()
        fns[i % len(fns)]()
        b.record()
    torch.cuda.synchronize()
    return _median([a.elapsed_time(b) for a, b in ev]) * 1e3


# --------------------------------------------------------------------------- data

class Shape:
    """Weights of one shape, and copies that peers made of them."""

    def __init__(self, name, dims, device, dtype, seed):
        import torch
        self.name, (self.H, self.I, self.E, self.k) = name, dims
        self.device, self.dtype = device, dtype
        self.item = torch.empty((), dtype=dtype).element_size()
        self.bytes = 3 * self.H * self.I * self.E * self.item
        self.copies = max(1, math.ceil(3 * L2 / self.bytes)) if device == "cuda" else 1
        gen = torch.Generator(device=device).manual_seed(seed)
        self.w1, self.w2 = [], []
        for _ in range(self.copies):
            self.w1.append(torch.randn((self.E, 2 * self.I, self.H), device=device, dtype=dtype, generator=gen)
                           .mul_(self.H ** -0.5))
            self.w2.append(torch.randn((self.E, self.H, self.I), device=device, dtype=dtype, generator=gen)
                           .mul_(self.I ** -0.5))
        self._cache = {}

    def cached(self, key, make):
        if key not in self._cache:
            self._cache[key] = make()
        return self._cache[key]


def given_logits(folder, shape, T):
    """The logits that the Nexus harness used for this cell: NAME-TOKENS-V.f32, float32 [T, E] each, raw."""
    import torch
    out, v = [], 0
    while os.path.exists(path := os.path.join(folder, f"{shape.name}-{T}-{v}.f32")):
        out.append(torch.frombuffer(bytearray(open(path, "rb").read()), dtype=torch.float32).reshape(T, shape.E))
        v += 1
    return out


class Ctx:
    """One shape at one token count: inputs, routing and an fp32 reference on some rows."""

    def __init__(self, shape, T, seed, skew, logits_dir=None):
        import torch
        self.__dict__.update(H=shape.H, I=shape.I, E=shape.E, k=shape.k, w1=shape.w1, w2=shape.w2, item=shape.item,
                             device=shape.device, dtype=shape.dtype, cached=shape.cached, name=shape.name)
        self.T = T
        per = 3 * self.H * self.I * self.item
        expected = self.E * (1 - (1 - self.k / self.E) ** T) * per
        nv = max(shape.copies, math.ceil(3 * L2 / expected)) if shape.device == "cuda" else 1
        nv = min(nv, 16)
        given = given_logits(logits_dir, shape, T) if logits_dir else []
        nv = len(given) or nv
        gen = torch.Generator(device=self.device).manual_seed(seed)
        self.xs, self.logits, self.rs = [], [], []
        touched, bias = 0, None
        for v in range(nv):
            self.xs.append(torch.randn((T, self.H), device=self.device, dtype=self.dtype, generator=gen))
            lg = torch.randn((T, self.E), device=self.device, dtype=torch.float32, generator=gen)
            if skew:      # one bias a cell: the same experts stay hot while inputs and weights rotate
                if bias is None:
                    bias = torch.randn((self.E,), device=self.device, generator=gen) * skew
                lg = lg + bias
            if given:
                lg = given[v].to(self.device)
            self.logits.append(lg)
            tw, ids = torch_router(lg, self.k)
            self.rs.append(Routing(tw, ids))
            touched += int(torch.unique(ids).numel())
        self.experts_hit = touched / nv
        self.flops = 2.0 * T * self.k * 3 * self.H * self.I
        # least traffic: each hit expert's weights once, x in, y out
        self.min_bytes = self.experts_hit * per + 2 * T * self.H * self.item
        counts = torch.bincount(self.rs[0].ids64.reshape(-1), minlength=self.E)
        self.max_load = float(counts.max()) / max(1e-9, T * self.k / self.E)
        self.rows = torch.arange(T, device=self.device) if T <= 256 else \
            torch.randperm(T, device=self.device, generator=gen)[:256]
        self.ref = self._reference(self.rows)

    def _reference(self, rows):
        import torch
        import torch.nn.functional as F
        x, r = self.xs[0][rows].float(), self.rs[0]
        tw, ids = r.tw[rows], r.ids64[rows]
        y = torch.zeros((len(rows), self.H), dtype=torch.float32, device=self.device)
        for e in torch.unique(ids).tolist():
            tok, slot = torch.where(ids == e)
            g, u = F.linear(x[tok], self.w1[0][e].float()).chunk(2, dim=-1)
            h = F.linear(F.silu(g) * u, self.w2[0][e].float())
            y.index_add_(0, tok, h * tw[tok, slot, None])
        return y

    def error(self, y):
        d = y[self.rows].float() - self.ref
        return float(d.norm() / self.ref.norm())


# --------------------------------------------------------------------------- worker

def measure(peer, ctx, scope, time_it=True):
    import torch
    call = getattr(peer, scope)
    if call is None:
        raise Skip(f"no {scope} scope")
    arg = ctx.rs if scope == "experts" else ctx.logits
    with torch.no_grad():
        y = call(ctx.xs[0], arg[0], 0)
        err = ctx.error(y)
        out = {"err": err, "ok": bool(err < TOL)}
        y2 = call(ctx.xs[0], arg[0], 0)
        out["det"] = bool(torch.equal(y, y2))
        if ctx.T > 1:
            head = arg[0].head(1) if scope == "experts" else arg[0][:1].contiguous()
            out["binv"] = bool(torch.equal(call(ctx.xs[0][:1].contiguous(), head, 0)[0], y[0]))
        if not time_it:
            return out
        nc = len(ctx.w1)
        fns = [lambda v=v: call(ctx.xs[v], arg[v], v % nc) for v in range(len(ctx.xs))]
        out["us_eager"] = time_eager(fns)
        if peer.graph:
            try:
                out["us_graph"] = time_graph(fns)
            except Exception as e:
                out["graph_error"] = f"{type(e).__name__}: {e}"[:200]
                reset_cuda_error()
    us = out.get("us_graph") or out["us_eager"]
    out["tflops"] = ctx.flops / us / 1e6
    out["gbps"] = ctx.min_bytes / us / 1e3
    out["pct_peak"] = 100 * out["tflops"] * 1e12 / PEAK
    out["pct_hbm"] = 100 * out["gbps"] * 1e9 / HBM
    return out


def router_rows(ctx):
    """Router alone: logits -> weights, ids (and for triton_kernels the sort too)."""
    import torch
    import common_kernels as ck
    rows = {}

    def put(name, f):
        try:
            fns = [lambda v=v: f(ctx.logits[v]) for v in range(len(ctx.logits))]
            rows[name] = {"us_graph": time_graph(fns, 0.1), "us_eager": time_eager(fns, 0.05)}
        except Exception as e:
            rows[name] = {"exception": f"{type(e).__name__}: {e}"[:200]}
            reset_cuda_error()

    put("torch softmax+topk+renorm", lambda lg: torch_router(lg, ctx.k))
    put("triton fused top-k softmax (own)", lambda lg: ck.topk_softmax(lg, ctx.k))

    def with_align(lg):
        _, ids = ck.topk_softmax(lg, ctx.k)
        return ck.moe_align_block_size(ids, 64, ctx.E)
    put("  the same + moe_align_block_size (own)", with_align)

    def torch_sort(lg):
        _, ids = torch_router(lg, ctx.k)
        s, p = torch.sort(ids.reshape(-1))
        return p, torch.cumsum(torch.histc(s.int(), bins=ctx.E, min=0, max=ctx.E - 1), 0)
    put("torch router + sort + counts", torch_sort)
    try:
        import triton_kernels_api  # noqa: F401
        from triton_kernels.routing import routing
        put("triton_kernels routing (top-k + sort)", lambda lg: routing(lg, ctx.k))
    except Exception as e:
        rows["triton_kernels routing (top-k + sort)"] = {"exception": f"{type(e).__name__}: {e}"[:200]}
    return rows


def emit(path, rec):
    with open(path, "a") as f:
        f.write(json.dumps(rec) + "\n")
        f.flush()
        os.fsync(f.fileno())


def read_state(path):
    recs = []
    if os.path.exists(path):
        for line in open(path):
            try:
                recs.append(json.loads(line))
            except ValueError:
                pass
    return recs


NO_GPU = 4      # exit status: there is no point in trying again


def worker(a):
    try:
        import torch
    except ImportError as e:
        print(f"the peers need torch: {e}", file=sys.stderr, flush=True)
        sys.exit(NO_GPU)
    if not torch.cuda.is_available():
        print("the peers need a GPU that torch can use; it sees none", file=sys.stderr, flush=True)
        sys.exit(NO_GPU)
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.manual_seed(a.seed)
    state = read_state(a.state)
    done = {tuple(r["key"]) for r in state if r["kind"] == "end"}
    started = {tuple(r["key"]) for r in state if r["kind"] == "start"}
    for key in sorted(started - done):        # the process died in these
        emit(a.state, {"kind": "end", "key": list(key), "status": "crashed", "detail": "process died or hung in it"})
        done.add(key)
    dead = {k[2] for k in started - {tuple(r["key"]) for r in state if r["kind"] == "end"}} | \
        {r["key"][2] for r in state if r.get("status") == "crashed"}
    scopes = ["experts", "layer"] if a.scope == "both" else [a.scope]
    print(f"torch {torch.__version__} on {torch.cuda.get_device_name()}, seed {a.seed}", flush=True)
    for name, dims in a.shape_list:
        tokens = a.tokens_of_shape.get(name, a.token_list)
        todo = [(T, p, s) for T in tokens for p in a.peer_list for s in scopes
                if (name, T, p, s) not in done and p not in dead]
        if a.router:
            todo += [(T, "router", "-") for T in tokens if (name, T, "router", "-") not in done]
        if not todo:
            continue
        if time.time() > a.deadline:
            print(f"budget used up: {name} left out", flush=True)
            continue
        try:
            shape = Shape(name, dims, "cuda", torch.bfloat16, a.seed)
        except Exception as e:
            print(f"{name}: no weights: {e}", flush=True)
            continue
        for T in tokens:
            mine = [(p, s) for (t, p, s) in todo if t == T]
            if not mine:
                continue
            if time.time() > a.deadline:
                print(f"budget used up: {name} T={T} left out", flush=True)
                continue
            ctx = Ctx(shape, T, a.seed + T, a.skew, a.logits)
            print(f"\n## {name}: hidden {ctx.H} inter {ctx.I} experts {ctx.E} top-k {ctx.k}, {T} tokens; "
                  f"{len(ctx.xs)} inputs, {len(ctx.w1)} weight copies, {ctx.experts_hit:.0f} experts hit, "
                  f"max/mean load {ctx.max_load:.2f}; least time "
                  f"{max(ctx.min_bytes / HBM, ctx.flops / PEAK) * 1e6:.1f} us", flush=True)
            built = {}
            for p, s in mine:
                key = [name, T, p, s]
                if time.time() > a.deadline:
                    print(f"budget used up before {p}", flush=True)
                    break
                emit(a.state, {"kind": "start", "key": key})
                rec = {"kind": "end", "key": key, "status": "ok", "experts_hit": ctx.experts_hit,
                       "max_load": ctx.max_load}
                try:
                    if p == "router":
                        rec["rows"] = router_rows(ctx)
                        for n, r in rec["rows"].items():
                            print(f"   {n:42s} " + (f"graph {r['us_graph']:8.2f} us  eager {r['us_eager']:8.2f} us"
                                                    if "us_graph" in r else r["exception"]), flush=True)
                    else:
                        if p not in built:
                            built[p] = PEERS[p](ctx)
                        rec["note"] = built[p].note
                        rec.update(measure(built[p], ctx, s))
                        print(line(p, s, rec), flush=True)
                except Skip as e:
                    rec.update(status="skipped", detail=str(e))
                    print(f"   {p:18s} {s:8s} skipped: {e}", flush=True)
                except Exception as e:
                    rec.update(status="failed", detail=f"{type(e).__name__}: {e}"[:500])
                    print(f"   {p:18s} {s:8s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
                    if a.trace:
                        traceback.print_exc()
                    try:
                        reset_cuda_error()
                    except Exception:
                        rec["status"] = "crashed"
                        emit(a.state, rec)
                        os._exit(3)
                emit(a.state, rec)
            built.clear()
            del ctx
            torch.cuda.empty_cache()
        del shape
        torch.cuda.empty_cache()
    os._exit(0)


def line(p, s, r):
    g = f"{r['us_graph']:10.2f}" if "us_graph" in r else "         -"
    flag = "" if r["ok"] else "  WRONG"
    return (f"   {p:18s} {s:8s} err {r['err']:.1e}  graph {g} us  eager {r['us_eager']:10.2f} us  "
            f"{r['tflops']:6.1f} TF ({r['pct_peak']:3.0f}%)  {r['gbps']:7.1f} GB/s ({r['pct_hbm']:3.0f}%)  "
            f"det {'y' if r['det'] else 'n'} binv {'-' if 'binv' not in r else 'y' if r['binv'] else 'n'}  "
            f"{r.get('note', '')} {r.get('graph_error', '')}{flag}")


# --------------------------------------------------------------------------- training

def train(a):
    """Forward + backward, eager: dx, dW1, dW2 and the router weights' gradient."""
    import torch
    torch.backends.cuda.matmul.allow_tf32 = False
    out = []
    for name, dims in a.shape_list:
        shape = Shape(name, dims, "cuda", torch.bfloat16, a.seed)
        for w in (shape.w1[0], shape.w2[0]):
            w.requires_grad_(True)
        for T in a.token_list:
            if time.time() > a.deadline:
                print("budget used up", flush=True)
                return out
            ctx = Ctx.__new__(Ctx)
            with torch.no_grad():
                Ctx.__init__(ctx, shape, T, a.seed + T, a.skew)
            ref = None
            print(f"\n## {name}, {T} tokens, forward + backward, eager", flush=True)
            for p in ["naive_loop", "torch_grouped_mm", "hf_grouped_mm", "scattermoe"]:
                try:
                    peer = PEERS[p](ctx)
                    if p.startswith("hf"):
                        peer.mods[0].gate_up_proj.requires_grad_(True)
                        peer.mods[0].down_proj.requires_grad_(True)
                    x = ctx.xs[0].clone().requires_grad_(True)
                    tw = ctx.rs[0].tw.clone().requires_grad_(True)
                    r = Routing.__new__(Routing)
                    r.tw, r.ids64, r.ids = tw, ctx.rs[0].ids64, ctx.rs[0].ids
                    gy = torch.randn_like(ctx.xs[0])

                    def step():
                        params = [shape.w1[0], shape.w2[0]]
                        if p.startswith("hf"):
                            params += [peer.mods[0].gate_up_proj, peer.mods[0].down_proj]
                        for q in params + [x, tw]:
                            q.grad = None
                        peer.experts(x, r, 0).backward(ctx.xs[0])
                        return x.grad
                    dx = step().float()
                    err = None if ref is None else float((dx - ref).norm() / ref.norm())
                    ref = dx if ref is None else ref
                    us = time_eager([step], 0.5)
                    rec = {"shape": name, "T": T, "peer": p, "us": us, "tflops": 3 * ctx.flops / us / 1e6,
                           "dx_vs_naive": err, "peak_GB": torch.cuda.max_memory_allocated() / 1e9}
                    torch.cuda.reset_peak_memory_stats()
                    out.append(rec)
                    print(f"   {p:18s} {us / 1e3:9.3f} ms  {rec['tflops']:6.1f} TF  dx vs naive {err}  "
                          f"peak {rec['peak_GB']:.1f} GB", flush=True)
                    del peer, x, tw, r, gy, dx
                except Exception as e:
                    print(f"   {p:18s} FAILED {type(e).__name__}: {str(e)[:300]}", flush=True)
                    if a.trace:
                        traceback.print_exc()
                torch.cuda.empty_cache()
        del shape
        torch.cuda.empty_cache()
    return out


# --------------------------------------------------------------------------- orchestration

def selftest():
    """Logic only, on the CPU. Triton peers too if TRITON_INTERPRET=1 (fp16 then: the interpreter's bf16 dot is wrong)."""
    import torch
    global L2
    interp = os.environ.get("TRITON_INTERPRET") == "1"
    dtype = torch.float16 if interp else torch.bfloat16
    bad = 0
    for T in (1, 7):
        ctx = Ctx(Shape("tiny", (128, 128, 16, 2), "cpu", dtype, 1), T, 5, 0.5)
        for p, cls in PEERS.items():
            for s in ("experts", "layer"):
                try:
                    r = measure(cls(ctx), ctx, s, time_it=False)
                    print(f"T={T} {p:18s} {s:8s} err {r['err']:.2e} det {r['det']} binv {r.get('binv')}")
                    bad += not r["ok"]
                except Skip as e:
                    print(f"T={T} {p:18s} {s:8s} skipped: {e}")
                except Exception as e:
                    print(f"T={T} {p:18s} {s:8s} {type(e).__name__}: {str(e)[:120]}")
    return bad


def main():
    ap = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    ap.add_argument("--shapes", default=DEFAULT_SHAPES, help="names, or 'all'")
    ap.add_argument("--shape", action="append", default=[], help="NAME:hidden:inter:experts:topk, repeatable")
    ap.add_argument("--tokens", default=None)
    ap.add_argument("--tokens-of", action="append", default=[], help="NAME=1,8,64: other token counts for one shape, repeatable")
    ap.add_argument("--peers", default="all", help="names, 'all', or 'none' (routers only)")
    ap.add_argument("--scope", default="layer", choices=["layer", "experts", "both"])
    ap.add_argument("--skew", type=float, default=0.0, help="standard deviation of a per-expert logit bias (0.5: mild)")
    ap.add_argument("--budget", type=float, default=430.0, help="seconds for everything (stops 30 s past it at the latest)")
    ap.add_argument("--json", default="peers.json")
    ap.add_argument("--no-router", dest="router", action="store_false", help="leave the router-only rows out")
    ap.add_argument("--seed", type=int, default=None)
    ap.add_argument("--logits", help="folder of NAME-TOKENS-V.f32: use these router logits instead of drawn ones")
    ap.add_argument("--trace", action="store_true", help="full tracebacks")
    ap.add_argument("--train", action="store_true")
    ap.add_argument("--selftest", action="store_true")
    ap.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    ap.add_argument("--state", help=argparse.SUPPRESS)
    ap.add_argument("--deadline", type=float, help=argparse.SUPPRESS)
    a = ap.parse_args()
    if a.selftest:
        sys.exit(1 if selftest() else 0)
    names = list(SHAPES) if a.shapes == "all" else [s for s in a.shapes.split(",") if s]
    if a.shape and a.shapes == DEFAULT_SHAPES:
        names = []
    a.shape_list = [(n, SHAPES[n]) for n in names]
    for s in a.shape:
        n, *d = s.split(":")
        a.shape_list.append((n, tuple(int(v) for v in d)))
    a.token_list = [int(t) for t in (a.tokens or ("8192" if a.train else DEFAULT_TOKENS)).split(",")]
    a.tokens_of_shape = {}
    for given in a.tokens_of:
        n, _, counts = given.partition("=")
        a.tokens_of_shape[n] = [int(t) for t in counts.split(",")]
    a.peer_list = list(PEERS) if a.peers == "all" else [] if a.peers == "none" else a.peers.split(",")
    for p in a.peer_list:
        if p not in PEERS:
            ap.error(f"no peer {p}; there are {', '.join(PEERS)}")
    if a.seed is None:
        a.seed = int.from_bytes(os.urandom(3), "little")
    a.deadline = a.deadline or time.time() + a.budget
    if a.worker:
        worker(a)
    if a.train:
        res = train(a)
        with open(a.json, "w") as f:
            json.dump({"seed": a.seed, "train": res}, f, indent=1)
        return
    state = os.path.abspath(a.json) + ".state"
    if os.path.exists(state):
        os.remove(state)
    args = [sys.executable, os.path.abspath(__file__), "--worker", "--state", state, "--deadline", str(a.deadline),
            "--seed", str(a.seed), "--tokens", ",".join(map(str, a.token_list)), "--peers", ",".join(a.peer_list) or "none",
            "--scope", a.scope, "--skew", str(a.skew), "--shapes", ",".join(names)]
    args += [v for s in a.shape for v in ("--shape", s)] + ([] if a.router else ["--no-router"])
    args += [v for t in a.tokens_of for v in ("--tokens-of", t)]
    args += ["--trace"] if a.trace else []
    args += ["--logits", os.path.abspath(a.logits)] if a.logits else []
    stall = 120
    for attempt in range(6):
        proc = subprocess.Popen(args)
        born = last = time.time()
        size = -1
        while proc.poll() is None:
            time.sleep(0.5)
            now = os.path.getsize(state) if os.path.exists(state) else 0
            if now != size:
                size, last = now, time.time()
            if time.time() - last > stall or time.time() > a.deadline + 30:
                print("no progress for minutes, or past the budget: stopping this process", flush=True)
                proc.kill()
                proc.wait()
        if proc.returncode == NO_GPU:
            sys.exit(NO_GPU)
        if proc.returncode == 0 or time.time() > a.deadline:
            break
        print(f"worker ended with {proc.returncode} after {time.time() - born:.0f} s; going on without what it was at",
              flush=True)
    recs = [r for r in read_state(state) if r["kind"] == "end"]
    with open(a.json, "w") as f:
        json.dump({"seed": a.seed, "scope": a.scope, "skew": a.skew, "hbm": HBM, "peak": PEAK,
                   "shapes": {n: d for n, d in a.shape_list}, "results": recs}, f, indent=1)
    summary(recs)
    os.remove(state) if os.path.exists(state) else None
    print(f"\nresults in {a.json}")


def summary(recs):
    rows = {}
    for r in recs:
        n, T, p, s = r["key"]
        if p == "router" or r["status"] != "ok":
            continue
        us = r.get("us_graph") or r.get("us_eager")
        rows.setdefault((n, T, s), []).append((us, p, r))
    print(f"\n{'shape':18s} {'tokens':>6s} {'scope':8s} {'best':18s} {'us':>10s} {'TF':>7s} {'GB/s':>7s}   then")
    for (n, T, s), v in rows.items():
        good = sorted((x for x in v if x[2]["ok"]), key=lambda x: x[0])
        if not good:
            print(f"{n:18s} {T:6d} {s:8s} nothing correct")
            continue
        us, p, r = good[0]
        rest = ", ".join(f"{q} {u / us:.2f}x" for u, q, _ in good[1:5])
        print(f"{n:18s} {T:6d} {s:8s} {p:18s} {us:10.2f} {r['tflops']:7.1f} {r['gbps']:7.1f}   {rest}")
    lost = [r for r in recs if r["status"] in ("failed", "crashed")]
    for r in lost:
        print("failed:", *r["key"], "-", r.get("detail", "")[:160])
    wrong = [r for r in recs if r["status"] == "ok" and r.get("ok") is False]
    for r in wrong:
        print("WRONG:", *r["key"], f"err {r['err']:.2e}")


if __name__ == "__main__":
    main()
