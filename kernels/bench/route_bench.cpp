// Times the router on cuda:0 in a recorded graph, as a step runs it: router logits, and routing in each of its ways
// (one block, one cluster, a grid; `auto` is what a call takes). Launched one by one from the host, such short kernels
// would measure the host. Each graph holds many calls in a row, so that a call is timed with the launch gap that a step
// has; median over replays. Every way's routing is compared with that of `auto`. `/1`: a token a warp instead of four.
// A way that does not take a size shows `auto` again.
//
//   route_bench [--tokens=1,8,…] [NAME=HIDDEN,EXPERTS,TOPK …]
#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "bench.h"
#include "data/cuda/route_path.h"

namespace {
using namespace nexus;
using bench::numbers;
using cuda::RoutePath;

struct Shape {
  std::string name;
  int64_t hidden;
  int experts, top_k;
};

struct Bench : bench::Memory {
  Bench() : Memory(Stream::create(DeviceId{0})) {}

  /// Median microseconds of one call.
  double time(const std::function<void()>& call) {
    constexpr int kCalls = 64, kReplays = 15;
    call();
    stream->synchronize();
    const auto graph = Graph::capture(stream, [&] {
      for (int i = 0; i < kCalls; ++i) call();
    });
    const auto start = Event::create(stream->device()), end = Event::create(stream->device());
    std::vector<double> samples;
    for (int i = 0; i < kReplays + 3; ++i) {
      start->record(*stream);
      graph->launch(stream);
      end->record(*stream);
      stream->synchronize();
      if (i >= 3) samples.push_back(start->elapsed_ms(*end) * 1000 / kCalls);
    }
    std::nth_element(samples.begin(), samples.begin() + kReplays / 2, samples.end());
    return samples[kReplays / 2];
  }

  std::vector<uint8_t> host(const std::vector<std::pair<const void*, int64_t>>& parts) {
    std::vector<uint8_t> all;
    for (const auto& [from, n] : parts) {
      const auto staging = HostBuffer::allocate(stream->device(), static_cast<size_t>(n));
      stream->copy(staging->data(), from, static_cast<size_t>(n));
      stream->synchronize();
      const auto* const b = static_cast<const uint8_t*>(staging->data());
      all.insert(all.end(), b, b + n);
    }
    return all;
  }

  bool run(const Shape& shape, int64_t tokens) {
    const int64_t e = shape.experts, slots = tokens * shape.top_k;
    const auto x = normals(DType::kBF16, tokens * shape.hidden, 1.f),
               w = normals(DType::kBF16, e * shape.hidden, 1.f / 32);
    const auto logits = bytes(tokens * e * 4), ids = bytes(slots * 4), weights = bytes(slots * 4);
    const auto counts = bytes(e * 4), offsets = bytes((e + 1) * 4), order = bytes(slots * 4);
    RouterLogitsArgs la;
    la.x = x->data(), la.x_dtype = la.weight_dtype = DType::kBF16, la.weight = w->data();
    la.tokens = tokens, la.hidden = shape.hidden, la.experts = shape.experts;
    la.logits = static_cast<float*>(logits->data());
    const double product = time([&] { cuda::router_logits(*stream, la); });
    RouterDesc desc;
    desc.experts = shape.experts, desc.top_k = shape.top_k, desc.normalize = Normalize::kSumPlusEpsilon;
    RouteArgs ra;
    ra.logits = la.logits, ra.tokens = tokens;
    ra.expert_ids = static_cast<int32_t*>(ids->data()), ra.weights = static_cast<float*>(weights->data());
    ra.counts = static_cast<int32_t*>(counts->data()), ra.offsets = static_cast<int32_t*>(offsets->data());
    ra.order = static_cast<int32_t*>(order->data());
    std::printf("%-16s %7lld %9.2f", shape.name.c_str(), static_cast<long long>(tokens), product);
    bool same = true;
    std::vector<uint8_t> first;
    const std::pair<RoutePath, bool> ways[] = {{RoutePath::kAuto, true},    {RoutePath::kBlock, true},
                                               {RoutePath::kCluster, true}, {RoutePath::kGrid, true},
                                               {RoutePath::kBlock, false},  {RoutePath::kCluster, false}};
    for (const auto& [path, quads] : ways) {
      cuda::set_route_path(path);
      cuda::set_route_quads(quads);
      const auto workspace = bytes(static_cast<int64_t>(cuda::route_workspace_bytes(desc, tokens)));
      ra.workspace = workspace->data();
      for (const auto& out : {ids, weights, counts, offsets, order}) stream->fill(out->data(), 0xFF, out->bytes());
      std::printf(" %9.2f", time([&] { cuda::route(*stream, desc, ra); }));
      const std::vector<uint8_t> result = host({{ids->data(), slots * 4},
                                                {weights->data(), slots * 4},
                                                {counts->data(), e * 4},
                                                {offsets->data(), (e + 1) * 4},
                                                {order->data(), slots * 4}});
      if (first.empty()) first = result;
      same = same && result == first;
    }
    cuda::set_route_path(RoutePath::kAuto);
    cuda::set_route_quads(true);
    std::printf("%s\n", same ? "" : "   DIFFERENT RESULTS");
    std::fflush(stdout);
    return same;
  }
};

}  // namespace

int main(int argc, char** argv) try {
  std::vector<Shape> shapes;
  std::vector<int64_t> tokens{1, 8, 32, 64, 128, 256, 512, 1024, 4096, 16384};
  for (int i = 1; i < argc; ++i) {
    const std::string arg = argv[i];
    const size_t equals = arg.find('=');
    const std::string key = arg.substr(0, equals), value = equals == std::string::npos ? "" : arg.substr(equals + 1);
    const std::vector<int64_t> n = numbers(value);
    if (key == "--tokens" && !n.empty()) {
      tokens = n;
    } else if (key.rfind("--", 0) != 0 && n.size() == 3) {
      shapes.push_back({key, n[0], static_cast<int>(n[1]), static_cast<int>(n[2])});
    } else {
      std::fprintf(stderr, "usage: route_bench [--tokens=1,8,...] [NAME=HIDDEN,EXPERTS,TOPK ...]\n");
      return 2;
    }
  }
  if (shapes.empty())
    shapes = {{"qwen3-30b-a3b", 2048, 128, 8},
              {"olmoe", 2048, 64, 8},
              {"gpt-oss-20b", 2880, 32, 4},
              {"mixtral", 4096, 8, 2},
              {"minimax", 3072, 256, 8}};
  Bench bench;
  std::printf("%-16s %7s %9s %9s %9s %9s %9s %9s %9s   microseconds a call in a graph (bf16, seed %llu)\n", "shape",
              "tokens", "logits", "auto", "block", "cluster", "grid", "block/1", "cluster/1",
              static_cast<unsigned long long>(bench.seed));
  bool same = true;
  for (const Shape& shape : shapes)
    for (const int64_t t : tokens) same = bench.run(shape, t) && same;
  return same ? 0 : 1;
} catch (const std::exception& e) {
  std::fprintf(stderr, "route_bench: %s\n", e.what());
  return 1;
}
