#!/usr/bin/env python3
"""float32 products by cuBLAS, as PyTorch calls it with TF32 off: an expert's rows at a time, and one large square product.

  python3 sgemm.py --cell NAME:hidden:inter:experts:topk/tokens [--cell …] --budget-ms 200

Prints one JSON object a line: {"cell": "…", "us": t} for both linear layers of all experts of a layer, one `torch.mm` for each expert and
layer, every expert with as many rows as the mean, and {"cell": "square", "us": t} for 8192 x 8192 x 8192. Medians, by events.
"""
import argparse
import json
import sys


def main():
    ap = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter, description=__doc__)
    ap.add_argument("--cell", action="append", default=[])
    ap.add_argument("--budget-ms", type=float, default=200.0)
    a = ap.parse_args()
    try:
        import torch
    except ImportError as e:
        sys.exit(f"sgemm.py needs torch: {e}")
    if not torch.cuda.is_available():
        sys.exit("sgemm.py needs a GPU that torch can use")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")

    def time(run):
        def once():
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            run()
            end.record()
            end.synchronize()
            return begin.elapsed_time(end)
        once()
        each = max(once(), 1e-3)
        times = sorted(once() for _ in range(int(min(50, max(5, a.budget_ms / each)))))
        return times[len(times) // 2] * 1e3

    def normal(*dims):
        return torch.randn(*dims, device="cuda", dtype=torch.float32)

    with torch.no_grad():
        for cell in a.cell:
            shape, tokens = cell.rsplit("/", 1)
            hidden, inter, experts, topk = (int(d) for d in shape.split(":")[1:])
            rows = max(1, int(tokens) * topk // experts)
            x, h = normal(rows, hidden), normal(rows, inter)
            up = [normal(2 * inter, hidden) for _ in range(experts)]
            down = [normal(hidden, inter) for _ in range(experts)]
            out = normal(rows, 2 * inter), normal(rows, hidden)

            def products():
                for w1, w2 in zip(up, down):
                    torch.mm(x, w1.t(), out=out[0])
                    torch.mm(h, w2.t(), out=out[1])
            print(json.dumps({"cell": cell, "us": time(products)}), flush=True)
            del x, h, up, down, out
            torch.cuda.empty_cache()
        a8, b8 = normal(8192, 8192), normal(8192, 8192)
        c8 = normal(8192, 8192)
        print(json.dumps({"cell": "square", "us": time(lambda: torch.mm(a8, b8.t(), out=c8))}), flush=True)


if __name__ == "__main__":
    main()
