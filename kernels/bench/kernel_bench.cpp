// Times the phases of one MoE layer on cuda:0, kernel by kernel: router logits, routing, first linear (gather + gated
// epilogue), second linear (scatter), combine. Fresh normal data every run; weights rotate over enough copies that a
// small layer's do not stay in L2. Events around loops of plain launches, median over the loops.
//
//   kernel_bench [--dtype=bf16|f16|f32] [--tokens=1,8,…] [--lanes=N] [--share-sm] [NAME=HIDDEN,INTER,EXPERTS,TOPK …]
//
// With --lanes both linears are also timed divided among N lanes (expert e in lane e mod N, equal shares): in one
// cooperative launch (coop), the same with a trace (traced), and in a launch per lane one after the other (each).
//
// GB/s counts the bytes that phase must move (weights of the experts hit once, inputs and outputs once), TFLOP/s its
// products.
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "bench.h"

namespace {
using namespace nexus;
using bench::numbers;

using Shape = bench::LayerShape;

struct Bench : bench::Memory {
  explicit Bench(StreamShape shape) : Memory(Stream::create(DeviceId{0}, 0, shape)) {}
  int lanes = 0;

  /// Median microseconds of one call of f(i), i counting up.
  double time(const std::function<void(int)>& f) {
    const auto start = Event::create(stream->device()), end = Event::create(stream->device());
    int calls = 0;
    const auto loop = [&](int n) {
      start->record(*stream);
      for (int i = 0; i < n; ++i) f(calls++);
      end->record(*stream);
      stream->synchronize();
      return start->elapsed_ms(*end) * 1000 / n;
    };
    loop(3);
    const double once = loop(5);
    const int n = std::clamp(static_cast<int>(5000 / std::max(once, 1.)), 4, 200);
    std::vector<double> samples;
    for (int i = 0; i < 7; ++i) samples.push_back(loop(n));
    std::nth_element(samples.begin(), samples.begin() + 3, samples.end());
    return samples[3];
  }

  void report(const Shape& shape, int64_t tokens, const char* phase, double us, double bytes, double flop,
              const std::string& variant) {
    std::printf("%-16s %6lld %-14s %10.2f us %8.0f GB/s %8.1f TFLOP/s  %s\n", shape.name.c_str(),
                static_cast<long long>(tokens), phase, us, bytes / us * 1e-3, flop / us * 1e-6, variant.c_str());
    std::fflush(stdout);
  }

  /// One linear as it is, and divided among lanes.
  void linear(const Shape& shape, int64_t tokens, const std::string& phase, const GroupedLinearDesc& desc,
              const GroupedLinearArgs& args, const std::vector<std::shared_ptr<Buffer>>& weights, double moved,
              double flop) {
    const std::string variant = cuda::grouped_linear_variant(desc, args.max_rows, stream->share_sm());
    const auto timed = [&](const std::string& name, const std::vector<LaneView>& views) {
      const double us = time([&](int i) {
        GroupedLinearArgs a = args;
        a.weight = weights[static_cast<size_t>(i) % weights.size()]->data();
        for (const LaneView& view : views) {
          a.lanes = view;
          cuda::grouped_linear(*stream, desc, a);
        }
      });
      report(shape, tokens, name.c_str(), us, moved, flop, variant);
    };
    timed(phase, {{}});
    if (lanes == 0) return;
    const auto host = HostBuffer::allocate(stream->device(), sizeof(LaneTable));
    auto* const t = new (host->data()) LaneTable;
    t->lanes = t->total = lanes;
    for (int l = 0; l <= lanes; ++l) t->begin[l] = l;
    for (int e = 0; e < desc.experts; ++e) t->lane_of[e] = e % lanes;
    const auto table = bytes(sizeof(LaneTable)), trace = bytes(kMaxLanes * kTraceWords * 4);
    stream->copy(table->data(), host->data(), sizeof(LaneTable));
    stream->fill(trace->data(), 0, trace->bytes());
    stream->synchronize();
    const auto* const on_device = static_cast<const LaneTable*>(table->data());
    std::vector<LaneView> each;
    for (int l = 0; l < lanes; ++l) each.push_back({on_device, l, nullptr});
    timed(phase + "/coop", {{on_device, -1, nullptr}});
    timed(phase + "/traced", {{on_device, -1, static_cast<uint32_t*>(trace->data())}});
    timed(phase + "/each", each);
  }

  void run(const Shape& shape, DType dtype, int64_t tokens) {
    const int64_t h = shape.hidden, inter = shape.inter, rows = tokens * shape.top_k;
    const double e = static_cast<double>(size_of(dtype));
    const int64_t first_weights = shape.experts * 2 * inter * h, second_weights = shape.experts * inter * h;
    // At one token only top_k experts' weights are read: rotate so that a copy is cold again, within a few GB.
    const double touched = 3. * std::min<int64_t>(rows, shape.experts) * inter * h * e;
    const double held = static_cast<double>(first_weights + second_weights) * e;
    const int copies = std::clamp(static_cast<int>(std::min(400e6 / touched, 24e9 / held)) + 1, 1, 8);
    std::vector<std::shared_ptr<Buffer>> w1, w2;
    for (int i = 0; i < copies; ++i) {
      w1.push_back(normals(dtype, first_weights, 1.f / 32));
      w2.push_back(normals(dtype, second_weights, 1.f / 32));
    }
    const auto x = normals(dtype, tokens * h, 1.f), wr = normals(dtype, shape.experts * h, 1.f / 32);
    const auto logits = bytes(tokens * shape.experts * 4), ids = bytes(rows * 4), weights = bytes(rows * 4);
    const auto counts = bytes(shape.experts * 4), offsets = bytes((shape.experts + 1) * 4), order = bytes(rows * 4);
    const auto hidden = bytes(rows * inter * size_of(dtype)), out_rows = bytes(rows * h * size_of(dtype));
    const auto y = bytes(tokens * h * size_of(dtype));
    RouterDesc router;
    router.experts = shape.experts, router.top_k = shape.top_k;
    router.normalize = Normalize::kSumPlusEpsilon;
    const auto workspace = bytes(cuda::route_workspace_bytes(router, tokens));

    RouterLogitsArgs la;
    la.x = x->data(), la.x_dtype = dtype, la.weight = wr->data(), la.weight_dtype = dtype;
    la.tokens = tokens, la.hidden = h, la.experts = shape.experts, la.logits = static_cast<float*>(logits->data());
    report(shape, tokens, "logits", time([&](int) { cuda::router_logits(*stream, la); }),
           (tokens + shape.experts) * h * e + tokens * shape.experts * 4., 2. * tokens * h * shape.experts, "");

    RouteArgs ra;
    ra.logits = la.logits, ra.tokens = tokens;
    ra.expert_ids = static_cast<int32_t*>(ids->data()), ra.weights = static_cast<float*>(weights->data());
    ra.counts = static_cast<int32_t*>(counts->data()), ra.offsets = static_cast<int32_t*>(offsets->data());
    ra.order = static_cast<int32_t*>(order->data()), ra.workspace = workspace->data();
    report(shape, tokens, "route", time([&](int) { cuda::route(*stream, router, ra); }),
           tokens * shape.experts * 4. + rows * 12., 0, "");

    const auto host = HostBuffer::allocate(stream->device(), shape.experts * 4);
    stream->copy(host->data(), counts->data(), shape.experts * 4);
    stream->synchronize();
    int hit = 0;
    for (int i = 0; i < shape.experts; ++i) hit += static_cast<const int32_t*>(host->data())[i] > 0;

    GroupedLinearDesc d1{dtype, shape.experts, h, 2 * inter, Epilogue::kSwiglu, {}};
    GroupedLinearArgs a1;
    a1.input = x->data(), a1.output = hidden->data(), a1.offsets = ra.offsets, a1.order = ra.order;
    a1.rows_per_input = shape.top_k, a1.gather = true, a1.max_rows = rows;
    linear(shape, tokens, "linear1", d1, a1, w1,
           (2. * hit * inter * h + static_cast<double>(tokens) * h + static_cast<double>(rows) * inter) * e,
           4. * rows * inter * h);

    GroupedLinearDesc d2{dtype, shape.experts, inter, h, Epilogue::kIdentity, {}};
    GroupedLinearArgs a2;
    a2.input = hidden->data(), a2.output = out_rows->data(), a2.offsets = ra.offsets, a2.order = ra.order;
    a2.scatter = true, a2.max_rows = rows;
    linear(shape, tokens, "linear2", d2, a2, w2, (1. * hit * inter * h + static_cast<double>(rows) * (inter + h)) * e,
           2. * rows * inter * h);

    CombineArgs ca;
    ca.dtype = dtype, ca.rows = out_rows->data(), ca.weights = ra.weights;
    ca.tokens = tokens, ca.width = h, ca.top_k = shape.top_k, ca.out = y->data();
    report(shape, tokens, "combine", time([&](int) { cuda::combine(*stream, ca); }), (rows + tokens) * h * e,
           2. * rows * h, "");
  }
};

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Shape> shapes;
  std::vector<int64_t> tokens{1, 8, 64, 512, 4096};
  DType dtype = DType::kBF16;
  int lanes = 0;
  StreamShape stream_shape;
  for (int i = 1; i < argc; ++i) {
    const bench::Argument argument(argv[i]);
    const auto& [key, value] = argument;
    if (key == "--tokens") {
      tokens = numbers(value);
    } else if (key == "--lanes" && !value.empty() && numbers(value)[0] >= 1 && numbers(value)[0] <= kMaxLanes) {
      lanes = static_cast<int>(numbers(value)[0]);
    } else if (key == "--share-sm") {
      stream_shape.share_sm = true;
    } else if (key == "--dtype" && (value == "bf16" || value == "f16" || value == "f32")) {
      dtype = value == "f32" ? DType::kF32 : value == "f16" ? DType::kF16 : DType::kBF16;
    } else if (!bench::add_shape(argument, shapes)) {
      std::fprintf(stderr,
                   "usage: kernel_bench [--dtype=bf16|f16|f32] [--tokens=1,8,...] [--lanes=1..64] "
                   "[--share-sm] [NAME=HIDDEN,INTER,EXPERTS,TOPK ...]\n");
      return 2;
    }
  }
  if (shapes.empty())
    shapes = {{"qwen3-30b-a3b", 2048, 768, 128, 8}, {"mixtral", 4096, 14336, 8, 2}, {"olmoe", 2048, 1024, 64, 8}};
  Bench bench(stream_shape);
  bench.lanes = lanes;
  std::printf("%-16s %6s %-14s   (%s, seed %llu)\n", "shape", "tokens", "phase", name_of(dtype),
              static_cast<unsigned long long>(bench.seed));
  for (const Shape& shape : shapes)
    for (const int64_t t : tokens) bench.run(shape, dtype, t);
  return 0;
} catch (const std::exception& e) {
  std::fprintf(stderr, "kernel_bench: %s\n", e.what());
  return 1;
}
