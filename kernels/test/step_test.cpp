// What travels with a step: the block (every operation reads it and gives the plain call's bits, touching nothing
// beyond the true tokens), the ring of counts (no torn slot, losses counted), the table of lanes.
#include "nexus/step.h"

#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "data_plane.h"
#include "exec/step.h"
#include "nexus/combine.h"
#include "nexus/router.h"

using namespace nexus;
using namespace nexus::test;

namespace {

/// Rows that end where readable memory ends: on the CPU a page that nobody may touch follows, so that reading past the
/// last row ends the test. On CUDA a plain upload (compute-sanitizer with NEXUS_CUDA_POOL=0 sees the same there).
class EdgeArray {
 public:
  EdgeArray(Bench& bench, const void* from, size_t bytes) {
    if (bench.device.is_cuda()) {
      data_ = bench.upload(from, bytes);
      return;
    }
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t body = (bytes + page - 1) / page * page;
    size_ = body + page;
    base_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED) throw Failure("mmap refused");
    char* end = static_cast<char*>(base_) + body;
    if (mprotect(end, page, PROT_NONE) != 0) throw Failure("mprotect refused");
    data_ = end - bytes;
    if (bytes > 0) std::memcpy(data_, from, bytes);
  }
  ~EdgeArray() {
    if (base_ != nullptr) munmap(base_, size_);
  }
  EdgeArray(const EdgeArray&) = delete;
  EdgeArray& operator=(const EdgeArray&) = delete;
  const void* data() const { return data_; }

 private:
  void* base_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
};

/// A whole layer, operation by operation, for up to `bucket` tokens: plainly, or by a block.
struct Pipeline {
  static constexpr int kExperts = 6;
  static constexpr int32_t kTopK = 2;
  static constexpr int64_t kWidth = 40, kInner = 24;

  DType dtype;
  int64_t bucket;
  CombineMode mode;
  bool given_logits;
  RouterDesc router{.experts = kExperts, .top_k = kTopK, .normalize = Normalize::kSumPlusEpsilon};
  MlpDesc mlp, shared;
  HostArray x, router_weight, gate;
  std::vector<float> logits;
  std::vector<HostArray> expert_weights, shared_weights;
  std::vector<float> bias;

  Pipeline(Random& random, DType t, int64_t tokens, CombineMode combine, bool logits_given)
      : dtype(t), bucket(tokens), mode(combine), given_logits(logits_given) {
    mlp = {.dtype = t, .experts = kExperts, .input = kWidth, .hidden = kInner, .output = kWidth};
    shared = {.dtype = t,
              .kind = MlpKind::kThreeLayer,
              .activation = Epilogue::kRelu,
              .input = kWidth,
              .hidden = kInner,
              .output = kWidth};
    const auto some = [&](int64_t n) { return HostArray::rounded(t, random.normals(static_cast<size_t>(n), 0.2f)); };
    x = some(bucket * kWidth);
    router_weight = some(kExperts * kWidth);
    gate = some(kWidth);
    logits = random.normals(static_cast<size_t>(bucket * kExperts));
    for (int i = 0; i < mlp_layers(mlp.kind); ++i) {
      const GroupedLinearDesc d = mlp_layer(mlp, i);
      expert_weights.push_back(some(d.experts * d.n * d.k));
    }
    for (int i = 0; i < mlp_layers(shared.kind); ++i) {
      const GroupedLinearDesc d = mlp_layer(shared, i);
      shared_weights.push_back(some(d.n * d.k));
    }
    bias = random.normals(kExperts * 2 * kInner, 0.1f);
  }

  int64_t out_width() const { return mode == CombineMode::kConcat ? kTopK * kWidth : kWidth; }

  /// Every array that the step writes, in bytes, as large as the bucket wants it.
  std::vector<std::vector<uint8_t>> run(Bench& bench, int64_t tokens, bool by_step, size_t shift) const {
    const size_t element = size_of(dtype), row = static_cast<size_t>(kWidth) * element;
    const size_t b = static_cast<size_t>(bucket), slots = b * kTopK;
    Stream& s = *bench.stream;
    const EdgeArray in(bench, x.data(), static_cast<size_t>(tokens) * row);
    const EdgeArray given(bench, logits.data(), static_cast<size_t>(tokens) * kExperts * sizeof(float));
    const size_t out_bytes = b * static_cast<size_t>(out_width()) * element;
    auto* const out_base = static_cast<uint8_t*>(bench.poisoned(dtype, out_bytes / element + shift));
    void* const out = out_base + shift * element;

    const StepBlock* step = nullptr;
    if (by_step) {
      auto* block = bench.poisoned<StepBlock>(1);
      StepBlock now;
      now.x = in.data(), now.out = out, now.tokens = static_cast<int32_t>(tokens);
      now.logits = given_logits ? static_cast<const float*>(given.data()) : nullptr;
      begin_step(s, now, block);
      step = block;
    }
    const int64_t bound = by_step ? bucket : tokens;
    const auto x_now = by_step ? nullptr : in.data();
    auto* const product = bench.poisoned<float>(b * kExperts);
    if (!given_logits)
      router_logits(s, {.x = x_now,
                        .x_dtype = dtype,
                        .weight = bench.upload(router_weight),
                        .weight_dtype = dtype,
                        .tokens = bound,
                        .hidden = kWidth,
                        .experts = kExperts,
                        .logits = product,
                        .step = step,
                        .choice_tokens = bucket});
    RouteArgs r;
    if (!given_logits)
      r.logits = product;
    else if (!by_step)
      r.logits = static_cast<const float*>(given.data());
    r.tokens = bound, r.step = step;
    r.expert_ids = bench.poisoned<int32_t>(slots), r.weights = bench.poisoned<float>(slots);
    r.counts = bench.poisoned<int32_t>(kExperts), r.offsets = bench.poisoned<int32_t>(kExperts + 1);
    r.order = bench.poisoned<int32_t>(slots);
    r.workspace = bench.poisoned<uint8_t>(route_workspace_bytes(bench.device, router, bucket) + 1);
    route(s, router, r);

    MlpArgs experts;
    experts.x = x_now, experts.tokens = bound, experts.top_k = kTopK, experts.choice_tokens = bucket;
    experts.offsets = r.offsets, experts.order = r.order, experts.input_scale = r.weights, experts.step = step;
    void* const rows = experts.rows = bench.poisoned(dtype, slots * kWidth);
    experts.workspace = bench.poisoned<uint8_t>(mlp_workspace_bytes(bench.device, mlp, bucket * kTopK) + 1);
    grouped_mlp(s, mlp, weights(bench, expert_weights, bench.upload(bias)), experts);

    const bool with_shared = mode == CombineMode::kWeightedSum;
    void* shared_rows = bench.poisoned(dtype, b * kWidth);
    float* scale = bench.poisoned<float>(b);
    if (with_shared) {
      MlpArgs dense;
      dense.x = x_now, dense.tokens = bound, dense.choice_tokens = bucket, dense.step = step;
      dense.rows = shared_rows;
      dense.workspace = bench.poisoned<uint8_t>(mlp_workspace_bytes(bench.device, shared, bucket) + 1);
      grouped_mlp(s, shared, weights(bench, shared_weights, nullptr), dense);
      shared_gate(s, {.x = x_now,
                      .weight = bench.upload(gate),
                      .dtype = dtype,
                      .tokens = bound,
                      .hidden = kWidth,
                      .scale = scale,
                      .step = step});
    }
    CombineArgs c{.mode = mode, .dtype = dtype, .rows = rows, .weights = r.weights};
    if (with_shared) c.shared = shared_rows, c.shared_scale = scale;
    c.tokens = bound, c.width = kWidth, c.top_k = kTopK, c.step = step, c.out = by_step ? nullptr : out;
    combine(s, c);

    const auto bytes = [&](const void* p, size_t n) { return bench.read(p, n); };
    return {bytes(product, b * kExperts * 4),
            bytes(r.expert_ids, slots * 4),
            bytes(r.weights, slots * 4),
            bytes(r.counts, kExperts * 4),
            bytes(r.offsets, (kExperts + 1) * 4),
            bytes(r.order, slots * 4),
            bytes(rows, slots * row),
            bytes(shared_rows, b * row),
            bytes(scale, b * 4),
            bytes(out_base, out_bytes + shift * element)};
  }
  static MlpWeights weights(Bench& bench, const std::vector<HostArray>& host, const float* first_bias) {
    MlpWeights w;
    for (size_t i = 0; i < host.size(); ++i) w.weight[i] = bench.upload(host[i]);
    w.bias[0] = first_bias;
    return w;
  }
};

constexpr const char* kArrays[] = {"logits", "expert_ids", "weights", "counts", "offsets",
                                   "order",  "rows",       "shared",  "scale",  "out"};

void compare(const Pipeline& p, Bench& bench, int64_t tokens, size_t shift, const std::string& where) {
  const auto plain = p.run(bench, tokens, false, shift), stepped = p.run(bench, tokens, true, shift);
  for (size_t i = 0; i < plain.size(); ++i)
    if (plain[i] != stepped[i])
      throw Failure(where + " " + name_of(p.dtype) + " bucket " + show(p.bucket) + " tokens " + show(tokens) + ": " +
                    kArrays[i] + " differs from the plain call's");
  const auto* counts = reinterpret_cast<const int32_t*>(stepped[3].data());
  CHECK_EQ(std::accumulate(counts, counts + Pipeline::kExperts, int64_t{0}), tokens * Pipeline::kTopK);
  const auto& out = stepped.back();  // and what lies beyond the true tokens was not touched
  const size_t own = static_cast<size_t>(tokens * p.out_width()) * size_of(p.dtype) + shift * size_of(p.dtype);
  for (size_t i = own; i < out.size(); ++i) CHECK_EQ(static_cast<int>(out[i]), 0xFF);
}

}  // namespace

// ---- blocks ------------------------------------------------------------------------------------------------------

TEST("begin_step: each queued block holds for what is queued behind it, and has its dense offsets") {
  for (const DeviceId device : devices()) {
    Bench bench(device);
    auto* current = bench.poisoned<StepBlock>(1);
    constexpr int kSteps = 50;
    auto staging = HostBuffer::allocate(device, kSteps * sizeof(StepBlock));
    auto* seen = static_cast<StepBlock*>(staging->data());
    std::vector<float> memory(3);
    for (int i = 0; i < kSteps; ++i) {
      StepBlock block;
      block.x = &memory[0], block.logits = &memory[1], block.out = &memory[2];
      block.tokens = i * 7;
      block.dense[0] = -1, block.dense[1] = 12345;  // derived, whatever they say
      begin_step(*bench.stream, block, current);
      bench.stream->copy(seen + i, current, sizeof(StepBlock));
    }
    bench.stream->synchronize();
    for (int i = 0; i < kSteps; ++i) {
      CHECK(seen[i].x == &memory[0] && seen[i].logits == &memory[1] && seen[i].out == &memory[2]);
      CHECK_EQ(seen[i].tokens, i * 7);
      CHECK_EQ(seen[i].dense[0], 0);
      CHECK_EQ(seen[i].dense[1], i * 7);
    }
    bench.read(current, 1);  // nothing was written past it
    StepBlock bad;
    bad.tokens = -1;
    CHECK(expect_error(ErrorCode::kInvalidArgument, [&] {
            begin_step(*bench.stream, bad, current);
          }).rfind("block.tokens: expected at least 0, got -1", 0) == 0);
    CHECK(expect_error(ErrorCode::kInvalidArgument, [&] {
            begin_step(*bench.stream, {}, nullptr);
          }).rfind("current", 0) == 0);
  }
}

TEST("a step's block gives every number of tokens up to its bucket the plain call's bits, and nothing beyond") {
  Random random(50);
  for (const DType t : kFloatTypes)
    for (const int64_t bucket : {1, 2, 8})
      for (const bool given : {false, true}) {
        const Pipeline p(random, t, bucket, CombineMode::kWeightedSum, given);
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            for (int64_t tokens = 0; tokens <= bucket; ++tokens) {
              Bench bench(device);
              compare(p, bench, tokens, 0, where);
            }
          });
      }
}

TEST("a step's block: large buckets, both kinds of routing, concatenated rows, an output off its alignment") {
  Random random(51);
  for (const DType t : kFloatTypes)
    for (const int64_t bucket : {33, 128, 150, 600})
      for (const CombineMode mode : {CombineMode::kWeightedSum, CombineMode::kConcat}) {
        const Pipeline p(random, t, bucket, mode, bucket == 150);
        for (const DeviceId device : devices())
          for_each_isa(device, [&](const std::string& where) {
            for (const int64_t tokens : {int64_t{0}, int64_t{1}, int64_t{7}, bucket / 2, bucket - 1, bucket}) {
              Bench bench(device);
              compare(p, bench, tokens, tokens % 2 == 1 ? 1 : 0, where);
            }
          });
      }
}

TEST("a step that is queued with no token at most leaves everything alone") {
  for (const DeviceId device : devices()) {
    Bench bench(device);
    Random random(52);
    const Pipeline p(random, DType::kF32, 0, CombineMode::kWeightedSum, false);
    for (const auto& array : p.run(bench, 0, true, 0))
      for (const uint8_t byte : array) CHECK(byte == 0xFF || byte == 0);  // counts and offsets are zero
  }
}

TEST("a step with more tokens than its operation was queued for fails the CPU stream by name") {
  const auto message_of = [](const std::function<void(Stream&, const StepBlock*)>& queue, StepBlock block) {
    auto stream = Stream::create(DeviceId{-1});
    StepBlock current;
    begin_step(*stream, block, &current);
    queue(*stream, &current);
    return expect_error(ErrorCode::kInternal, [&] { stream->synchronize(); });
  };
  static float memory[64];
  StepBlock three;
  three.x = three.logits = memory, three.out = memory + 32, three.tokens = 3;
  const auto gate = [](Stream& s, const StepBlock* step) {
    shared_gate(s, {.weight = memory, .tokens = 2, .hidden = 1, .scale = memory + 48, .step = step});
  };
  const auto sum = [](Stream& s, const StepBlock* step) {
    combine(s, {.rows = memory, .tokens = 2, .width = 1, .step = step});
  };
  for (const auto& queue : {std::function<void(Stream&, const StepBlock*)>(gate), {sum}}) {
    CHECK(message_of(queue, three).find("step->tokens is 3; expected 0..2") != std::string::npos);
    StepBlock empty;
    empty.tokens = 1;
    CHECK(message_of(queue, empty).find("is null; expected memory of 1 tokens") != std::string::npos);
  }
}

// ---- the ring of counts ------------------------------------------------------------------------------------------

namespace {

/// A routing whose counts are known: token t of `tokens` chooses expert (t + shift) % experts.
struct KnownRouting {
  RouterDesc desc;
  RouteArgs args;
  std::vector<int32_t> counts;
  KnownRouting(Bench& bench, int experts, int64_t tokens, int shift) {
    desc.experts = experts, desc.top_k = 1;
    counts.assign(static_cast<size_t>(experts), 0);
    std::vector<float> logits(static_cast<size_t>(tokens * experts), 0.f);
    for (int64_t t = 0; t < tokens; ++t) {
      const size_t e = static_cast<size_t>((t + shift) % experts);
      logits[static_cast<size_t>(t * experts) + e] = 5.f;
      ++counts[e];
    }
    args.logits = bench.upload(logits), args.tokens = tokens;
    args.expert_ids = bench.poisoned<int32_t>(static_cast<size_t>(tokens));
    args.weights = bench.poisoned<float>(static_cast<size_t>(tokens));
    args.counts = bench.poisoned<int32_t>(counts.size());
    args.offsets = bench.poisoned<int32_t>(counts.size() + 1);
    args.order = bench.poisoned<int32_t>(static_cast<size_t>(tokens));
    args.workspace = bench.poisoned<uint8_t>(route_workspace_bytes(bench.device, desc, tokens) + 1);
  }
};

}  // namespace

TEST("CountRing: what a router wrote is what is read, in order; overwritten steps are counted as lost") {
  for (const DeviceId device : devices())
    for (const int experts : {1, 7, 64, 1024}) {
      Bench bench(device);
      auto ring = CountRing::create(device, experts, 4);
      CHECK_EQ(ring->experts(), experts);
      CHECK_EQ(ring->capacity(), 4);
      const CountRing::Reading none = ring->read(0);
      CHECK(none.steps.empty() && none.counts.empty() && none.lost == 0 && none.next == 0);

      // 5 tokens in one block, 300 in three launches, none at all, and a number that only the step's block knows
      std::vector<KnownRouting> routings;
      for (const int64_t tokens : {5, 300, 0, 9}) routings.emplace_back(bench, experts, tokens, experts / 2);
      auto* block = bench.poisoned<StepBlock>(1);
      KnownRouting by_block(bench, experts, 9, 3);
      StepBlock now;
      now.logits = by_block.args.logits, now.tokens = 9;
      begin_step(*bench.stream, now, block);
      routings.back() = by_block;
      routings.back().args.tokens = 200, routings.back().args.logits = nullptr, routings.back().args.step = block;
      routings.back().args.workspace =
          bench.poisoned<uint8_t>(route_workspace_bytes(device, routings.back().desc, 200) + 1);
      const int32_t tokens[] = {5, 300, 0, 9};
      const auto queue = [&](size_t i) {
        RouteArgs args = routings[i % 4].args;
        args.ring = ring->view();
        route(*bench.stream, routings[i % 4].desc, args);
      };
      const auto check = [&](const CountRing::Reading& r, uint64_t first, uint64_t count) {
        CHECK_EQ(r.steps.size(), count);
        for (uint64_t i = 0; i < count; ++i) {
          const size_t which = (first + i) % 4;
          CHECK_EQ(r.steps[i], first + i);
          CHECK_EQ(r.tokens[i], tokens[which]);
          CHECK(std::equal(routings[which].counts.begin(), routings[which].counts.end(),
                           r.counts.begin() + static_cast<int64_t>(i) * experts));
        }
        CHECK_EQ(r.next, first + count);
      };
      for (size_t i = 0; i < 3; ++i) queue(i);
      bench.stream->synchronize();
      const CountRing::Reading three = ring->read(0);
      check(three, 0, 3);
      CHECK_EQ(three.lost, 0u);
      check(ring->read(1), 1, 2);  // readers do not disturb each other
      CHECK_EQ(ring->read(three.next).steps.size(), 0u);
      CHECK_EQ(ring->read(17).next, 17u);  // from a step to come
      for (size_t i = 3; i < 14; ++i) queue(i);
      bench.stream->synchronize();
      const CountRing::Reading rest = ring->read(three.next);
      check(rest, 10, 4);
      CHECK_EQ(rest.lost, 7u);
      for (const KnownRouting& r : routings)
        CHECK(bench.read(r.args.counts, r.counts.size()) == r.counts);  // the array has them as ever
    }
}

TEST("CountRing: readers beside a running device see whole steps only, and every step is read or lost") {
  for (const DeviceId device : devices()) {
    constexpr int kExperts = 512, kSteps = 3000;
    Bench bench(device);
    auto ring = CountRing::create(device, kExperts, 3);
    const KnownRouting a(bench, kExperts, 20, 0), b(bench, kExperts, 31, 100);
    std::atomic<bool> done{false};
    std::string wrong;
    uint64_t next = 0, read = 0, lost = 0;
    const auto drain = [&] {
      const CountRing::Reading r = ring->read(next);
      for (size_t i = 0; i < r.steps.size() && wrong.empty(); ++i) {
        const KnownRouting& want = r.steps[i] % 2 == 0 ? a : b;
        if (r.tokens[i] != want.args.tokens ||
            !std::equal(want.counts.begin(), want.counts.end(), r.counts.begin() + static_cast<int64_t>(i) * kExperts))
          wrong = "step " + show(r.steps[i]) + " is torn";
        if (i > 0 && r.steps[i] <= r.steps[i - 1]) wrong = "steps are not ascending";
      }
      read += r.steps.size(), lost += r.lost, next = r.next;
    };
    std::thread reader([&] {
      while (!done) drain();
    });
    for (int i = 0; i < kSteps; ++i) {
      RouteArgs args = (i % 2 == 0 ? a : b).args;
      args.ring = ring->view();
      route(*bench.stream, a.desc, args);
      if (i % 100 == 99) bench.stream->synchronize();
    }
    bench.stream->synchronize();
    done = true;
    reader.join();
    drain();
    if (!wrong.empty()) throw Failure(device.name() + ": " + wrong);
    CHECK_EQ(read + lost, static_cast<uint64_t>(kSteps));
    CHECK(read > 0);
  }
}

TEST("CountRing: a writer at full speed never gives a reader a torn slot") {
  constexpr int kExperts = 1023;
  constexpr uint64_t kSteps = 100000;
  for (const int capacity : {1, 2, 5}) {
    auto ring = CountRing::create(DeviceId{-1}, kExperts, capacity);
    std::atomic<bool> done{false};
    std::thread writer([&] {
      // Little but writing, so that copies and writes meet: the tokens say which step it was.
      const CountRingView view = ring->view();
      std::vector<int32_t> counts(2 * kExperts);
      for (size_t e = 0; e < counts.size(); ++e) counts[e] = static_cast<int32_t>(e);
      for (uint64_t step = 0; step < kSteps; ++step) {
        cpu::write_counts(view, kExperts, static_cast<int32_t>(step % kExperts), counts.data() + step % kExperts);
        for (volatile uint64_t pause = step * 7 % 499; pause > 0;) pause = pause - 1;  // about as long as a copy takes
      }
      done = true;
    });
    uint64_t next = 0, read = 0, lost = 0, torn = 0;
    for (bool last = false; !last;) {
      last = done;
      const CountRing::Reading r = ring->read(next);
      for (size_t i = 0; i < r.steps.size(); ++i) {
        const auto first = static_cast<int32_t>(r.steps[i] % kExperts);
        bool whole = r.tokens[i] == first;
        for (int32_t e = 0; e < kExperts; ++e)
          whole = whole && r.counts[i * kExperts + static_cast<size_t>(e)] == first + e;
        if (!whole) ++torn;
      }
      read += r.steps.size(), lost += r.lost, next = r.next;
    }
    writer.join();
    CHECK_EQ(torn, 0u);
    CHECK_EQ(read + lost, kSteps);
    CHECK(read > 0 && lost > 0);  // otherwise the two never met
  }
}

TEST("CountRing: may be dropped while steps that write it are queued; refuses what it cannot hold, by name") {
  for (const DeviceId device : devices()) {
    Bench bench(device);
    const KnownRouting r(bench, 8, 40, 0);
    for (int i = 0; i < 20; ++i) {
      auto ring = CountRing::create(device, 8, 2);
      ring->record_use(bench.stream);
      RouteArgs args = r.args;
      args.ring = ring->view();
      for (int k = 0; k < 10; ++k) route(*bench.stream, r.desc, args);
    }
    bench.stream->synchronize();
    CHECK(bench.read(r.args.counts, 8) == r.counts);
  }
  const auto refused = [](const char* name, const std::function<void()>& f) {
    const std::string message = expect_error(ErrorCode::kInvalidArgument, f);
    if (message.rfind(name, 0) != 0) throw Failure("expected a message about " + std::string(name) + ": " + message);
  };
  const DeviceId cpu{-1};
  refused("experts", [&] { CountRing::create(cpu, 0, 4); });
  refused("experts", [&] { CountRing::create(cpu, 1025, 4); });
  refused("capacity", [&] { CountRing::create(cpu, 4, 0); });
  refused("capacity", [&] { CountRing::create(cpu, 4, 65537); });
  Bench bench(cpu);
  KnownRouting r(bench, 8, 1, 0);
  auto ring = CountRing::create(cpu, 8, 2);
  refused("stream", [&] { ring->record_use(nullptr); });
  const auto with = [&](const char* name, const std::function<void(CountRingView&)>& spoil) {
    refused(name, [&] {
      RouteArgs args = r.args;
      args.ring = ring->view();
      spoil(args.ring);
      route(*bench.stream, r.desc, args);
    });
  };
  with("ring.counter", [](CountRingView& v) { v.counter = nullptr; });
  with("ring.capacity", [](CountRingView& v) { v.capacity = 0; });
  with("ring.stride", [](CountRingView& v) { v.stride = 5; });
}

// ---- lanes -------------------------------------------------------------------------------------------------------

TEST("LaneSet: tables and traces change in stream order, from host memory that is the set's own") {
  for (const DeviceId device : devices()) {
    Bench bench(device);
    auto set = LaneSet::create(bench.stream, {0, 2, 1, 0}, 3, {5, 1, 2}, true);
    CHECK_EQ(set->lanes(), 3);
    CHECK_EQ(set->experts(), 4);
    CHECK(set->traced());
    const LaneView all = set->view(-1), one = set->view(1);
    CHECK(all.table == one.table && all.trace == one.trace && all.trace != nullptr);
    CHECK_EQ(all.lane, -1);
    CHECK_EQ(one.lane, 1);
    constexpr int kUpdates = 40;
    auto staging = HostBuffer::allocate(device, (kUpdates + 1) * sizeof(LaneTable));
    auto* seen = static_cast<LaneTable*>(staging->data());
    bench.stream->copy(seen, all.table, sizeof(LaneTable));
    for (int i = 1; i <= kUpdates; ++i) {
      set->update(bench.stream, {i % 3, 2, 1, 0}, i % 2 ? std::vector<int32_t>{} : std::vector<int32_t>{i, 1, 1});
      bench.stream->copy(seen + i, all.table, sizeof(LaneTable));
    }
    bench.stream->synchronize();
    CHECK_EQ(seen[0].total, 8);
    CHECK_EQ(seen[0].lanes, 3);
    CHECK(std::vector<int32_t>(seen[0].begin, seen[0].begin + 4) == (std::vector<int32_t>{0, 5, 6, 8}));
    CHECK(std::vector<int32_t>(seen[0].lane_of, seen[0].lane_of + 4) == (std::vector<int32_t>{0, 2, 1, 0}));
    for (int i = 1; i <= kUpdates; ++i) {
      CHECK_EQ(seen[i].lane_of[0], i % 3);
      CHECK_EQ(seen[i].total, i % 2 ? 3 : i + 2);
    }
    // A trace is given out once.
    const std::vector<uint32_t> bits(3 * kTraceWords, 0xA5A5A5A5u);
    bench.stream->copy(all.trace, bench.upload(bits), bits.size() * 4);
    auto out = HostBuffer::allocate(device, 2 * bits.size() * 4);
    auto* words = static_cast<uint32_t*>(out->data());
    set->take_trace(bench.stream, words);
    set->take_trace(bench.stream, words + bits.size());
    bench.stream->synchronize();
    for (size_t i = 0; i < bits.size(); ++i) {
      CHECK_EQ(words[i], bits[i]);
      CHECK_EQ(words[bits.size() + i], 0u);
    }
  }
}

TEST("LaneSet: refuses bad lanes by name and value") {
  auto stream = Stream::create(DeviceId{-1});
  const auto refused = [&](const std::string& start, const std::function<void()>& f) {
    const std::string message = expect_error(ErrorCode::kInvalidArgument, f);
    if (message.rfind(start, 0) != 0) throw Failure("expected '" + start + "', got: " + message);
  };
  const auto create = [&](std::vector<int32_t> lane_of, int lanes, std::vector<int32_t> shares) {
    return [=] { LaneSet::create(stream, lane_of, lanes, shares, false); };
  };
  refused("stream", [] { LaneSet::create(nullptr, {0}, 1, {}, false); });
  refused("lanes: expected 1..64, got 0", create({0}, 0, {}));
  refused("lanes: expected 1..64, got 65", create({0}, 65, {}));
  refused("lane_of: expected 1..1024 experts, got 0", create({}, 1, {}));
  refused("lane_of: expected 1..1024 experts, got 1025", create(std::vector<int32_t>(1025, 0), 1, {}));
  refused("lane_of[1]: expected 0..1, got 2", create({0, 2}, 2, {}));
  refused("lane_of[0]: expected 0..1, got -1", create({-1, 0}, 2, {}));
  refused("shares: expected one for each of 2 lanes, or none, got 1", create({0, 1}, 2, {1}));
  refused("shares[1]: expected at least 1, got 0", create({0, 1}, 2, {1, 0}));
  refused("shares: expected a sum below 2^31", create({0, 1}, 2, {INT32_MAX, 1}));
  auto set = LaneSet::create(stream, {0, 1}, 2, {}, false);
  refused("lane_of: expected 2 experts, got 3", [&] { set->update(stream, {0, 1, 1}, {}); });
  refused("lane_of[1]: expected 0..1, got 7", [&] { set->update(stream, {0, 7}, {}); });
  refused("lane: expected -1..1, got 2", [&] { set->view(2); });
  refused("lane: expected -1..1, got -2", [&] { set->view(-2); });
  refused("stream", [&] { set->record_use(nullptr); });
  CHECK(set->view(0).trace == nullptr);
  uint32_t word;
  expect_error(ErrorCode::kUnsupported, [&] { set->take_trace(stream, &word); });
}

TEST("LaneSet: an update cannot be recorded in a graph, and says so") {
  for (const DeviceId device : devices()) {
    Bench bench(device);
    auto set = LaneSet::create(bench.stream, {0, 1}, 2, {}, false);
    bench.stream->synchronize();
    const std::string message = expect_error(ErrorCode::kGraphCapture, [&] {
      Graph::capture(bench.stream, [&] { set->update(bench.stream, {1, 0}, {}); });
    });
    CHECK(message.find("LaneSet::update") != std::string::npos);
  }
}
