#!/usr/bin/env python3
"""The textbook loop over experts in PyTorch, step after step for some seconds, for whoever meters the device meanwhile.

  python3 textbook_loop.py --shape NAME:hidden:inter:experts:topk --tokens 64 --logits FOLDER --seconds 2

Prints one JSON object a line: {"event": "ready", "error": e} after a check against float32 and a warm-up; then it waits for a line on its
input, runs, and prints {"event": "done", "steps": n, "seconds": s, "latenciesUs": [...]} (at most 2000 of them, evenly spread). Latency is from
one step's end to the next one's, with the wait for the device that the loop itself makes: it reads the routing back.
"""
import argparse
import json
import sys
import time

import bench_peers as bp


def main():
    ap = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    ap.add_argument("--shape", required=True)
    ap.add_argument("--tokens", type=int, required=True)
    ap.add_argument("--logits", required=True)
    ap.add_argument("--seconds", type=float, default=2.0)
    ap.add_argument("--seed", type=int, default=1)
    ap.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    a = ap.parse_args()
    import torch
    name, *dims = a.shape.split(":")
    shape = bp.Shape(name, tuple(int(d) for d in dims), a.device, torch.bfloat16, a.seed)
    ctx = bp.Ctx(shape, a.tokens, a.seed + a.tokens, 0.0, a.logits)
    loop = bp.NaiveLoop(ctx)

    def wait():
        if a.device == "cuda":
            torch.cuda.synchronize()

    def step(i):
        v = i % len(ctx.xs)
        return loop.layer(ctx.xs[v], ctx.logits[v], 0)

    def say(**what):
        print(json.dumps(what), flush=True)

    with torch.no_grad():
        error = ctx.error(step(0))
        for i in range(3):
            step(i)
        wait()
        say(event="ready", error=error)
        if not sys.stdin.readline():
            return
        ends, begin = [], time.perf_counter()
        last = begin
        while last - begin < a.seconds or len(ends) < 3:
            step(len(ends))
            wait()
            now = time.perf_counter()
            ends.append((now - last) * 1e6)
            last = now
        every = max(1, len(ends) // 2000)
        say(event="done", steps=len(ends), seconds=last - begin, latenciesUs=ends[::every])


if __name__ == "__main__":
    main()
