// The limit of bytes under way (StreamShape::read_ahead): who takes it, what it makes of a ring of buffers, and that no
// bit depends on it.
#include <array>

#include "data/cuda/hopper_shape.h"
#include "data_plane.h"

using namespace nexus;
using namespace nexus::test;

TEST("read-ahead: streams and slices keep what they were given, and refuse less than nothing") {
  StreamShape few, none;
  few.read_ahead = 8'000'000, none.read_ahead = -1;
  for (const auto device : devices()) {
    CHECK_EQ(Stream::create(device)->read_ahead(), int64_t{0});
    CHECK_EQ(Stream::create(device, 0, few)->read_ahead(), int64_t{8'000'000});
    expect_error(ErrorCode::kInvalidArgument, [&] { (void)Stream::create(device, 0, none); });
    const auto info = partition_info(device);
    const auto partition = Partition::create(device, {info.units});
    CHECK_EQ(partition->create_stream(0, 0)->read_ahead(), int64_t{0});
    CHECK_EQ(partition->create_stream(0, 0, few)->read_ahead(), int64_t{8'000'000});
    CHECK_EQ(partition->create_stream(0, 0, few)->width(), info.units);
    expect_error(ErrorCode::kInvalidArgument, [&] { (void)partition->create_stream(0, 0, none); });
  }
}

TEST("read-ahead: quarters of buffers, as many as stay within it, two at least") {
  using cuda::hopper::ring_quarters;
  constexpr int64_t kBuffer = 32 << 10;
  CHECK_EQ(ring_quarters(0, 112, kBuffer, 5), 20);
  // The consumers hold one buffer: with three, 112 blocks have 7.3 MB under way.
  CHECK_EQ(ring_quarters(8'000'000, 112, kBuffer, 5), 12);
  CHECK_EQ(ring_quarters(9'300'000, 112, kBuffer, 5), 14);
  CHECK_EQ(ring_quarters(8'000'000, 48, kBuffer, 5), 20);
  CHECK_EQ(ring_quarters(1, 112, kBuffer, 5), 8);
  CHECK_EQ(ring_quarters(INT64_MAX, 1, kBuffer, 5), 20);
  Random random(1);
  for (int i = 0; i < 10'000; ++i) {
    const int64_t bytes = random.integer(1, 40'000'000), blocks = random.integer(1, 132);
    const int stages = static_cast<int>(random.integer(2, 11)),
              quarters = ring_quarters(bytes, blocks, kBuffer, stages);
    CHECK(quarters >= 8 && quarters <= 4 * stages);
    if (quarters > 8) CHECK((quarters - 4) * blocks * kBuffer <= 4 * bytes);
    if (quarters < 4 * stages) CHECK((quarters - 3) * blocks * kBuffer > 4 * bytes);
  }
}

TEST("read-ahead: a limit in quarters is kept in the mean, and never under two nor over the ring") {
  for (int stages = 2; stages <= 11; ++stages)
    for (int quarters = 8; quarters <= 4 * stages; ++quarters) {
      int sum = 0;
      for (int step = 0; step < 4; ++step) {
        const int limit = cuda::hopper::ring_limit(quarters, step);
        CHECK(limit >= 2 && limit <= stages);
        sum += limit;
      }
      CHECK_EQ(sum, quarters);
    }
}

TEST("read-ahead: a producer that keeps to a limit fills no buffer that is in use, and never waits for ever") {
  // The kernel's loops: the producer takes back what is released in order; the consumers release a buffer when the
  // products of the next step have begun, or at the end of a tile.
  Random random(2);
  for (int round = 0; round < 400; ++round) {
    const int stages = static_cast<int>(random.integer(2, 6));
    const int quarters = static_cast<int>(random.integer(8, 4 * stages)),
              steps = static_cast<int>(random.integer(1, 9));
    const int tiles = static_cast<int>(random.integer(1, 6)), total = tiles * steps;
    int filled = 0, consumed = 0, released = 0, taken_back = 0;
    while (consumed < total) {
      bool moved = false;
      if (filled < total) {
        const int most = cuda::hopper::ring_limit(quarters, filled % steps);
        while (filled - taken_back >= most && taken_back < released) ++taken_back, moved = true;
        if (filled - taken_back < most) {
          CHECK(filled - released < stages);  // the buffer of this step is free
          ++filled, moved = true;
        }
      }
      if (consumed < filled && random.integer(0, 2) == 0) {
        ++consumed, moved = true;
        released = consumed % steps == 0 ? consumed : consumed - 1;
      } else {
        moved = moved || consumed < filled;
      }
      CHECK(moved);  // else both wait for each other
    }
  }
}

TEST("read-ahead: no bit of a linear layer depends on it") {
  Random random(84);
  for (const auto device : devices()) {
    Bench bench(device);
    const auto partition = Partition::create(device, {partition_info(device).units});
    // By whole panels of 64 elements or not: other shapes, of which a limit makes one.
    for (const auto& [rows, k, n] : {std::array<int, 3>{1, 1032, 520},
                                     {40, 1032, 520},
                                     {700, 1032, 520},
                                     {6, 1024, 512},
                                     {20, 1024, 512},
                                     {40, 1024, 512}}) {
      GroupedLinearDesc desc;
      desc.dtype = device.is_cuda() ? DType::kBF16 : DType::kF32;
      desc.experts = 3, desc.k = k, desc.n = n;
      const int64_t slots = 2 * rows;
      const auto rounded = [&](int64_t count) {
        return HostArray::rounded(desc.dtype, random.normals(static_cast<size_t>(count), .03f));
      };
      GroupedLinearArgs args;
      args.input = bench.upload(rounded(slots * desc.k)), args.weight = bench.upload(rounded(3 * desc.n * desc.k));
      args.offsets = bench.upload(std::vector<int32_t>{0, rows, rows, 2 * rows}), args.max_rows = slots;
      const auto size = static_cast<size_t>(slots * desc.n);
      std::vector<HostArray> out;
      for (const int64_t bytes : {0, 1, 4'000'000, 12'000'000}) {
        StreamShape shape;
        shape.read_ahead = bytes;
        args.output = bench.poisoned(desc.dtype, size);
        bench.stream->synchronize();
        const auto stream = partition->create_stream(0, 0, shape);
        grouped_linear(*stream, desc, args);
        stream->synchronize();
        out.push_back(bench.read(desc.dtype, args.output, size));
      }
      for (const HostArray& each : out) CHECK(each.bytes == out[0].bytes);
    }
  }
}
