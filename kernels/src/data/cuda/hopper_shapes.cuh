// From the tables of hopper_variants.h to kernels: for the files that compile them, one table each, so that they
// compile in parallel.
#pragma once
#include "data/cuda/hopper_launch.cuh"

namespace nexus::cuda::hopper {

template <class S>
constexpr Variant variant_of(const char* name) {
  return {name,  Kernel::kWgmma, SumOrder::kWgmma64, S::ROWS * S::CLUSTER, S::COLUMNS,
          S::BK, S::STAGES,      S::THREADS / 32,    S::SHARED_BYTES};
}

}  // namespace nexus::cuda::hopper

#define NEXUS_SHAPE(NAME, ROWS, STAGES, CLUSTER, PRODUCER, CONSUMER, ...)         \
  ::nexus::cuda::hopper::Shape<T, ROWS, STAGES, CLUSTER, 168, PRODUCER, CONSUMER, \
                               ::nexus::cuda::hopper::Options<__VA_ARGS__>>
#define NEXUS_VARIANT(NAME, ...) ::nexus::cuda::hopper::variant_of<NEXUS_SHAPE(NAME, __VA_ARGS__)>(NAME),
#define NEXUS_LAUNCHER(NAME, ...) &::nexus::cuda::hopper::launch_shape<NEXUS_SHAPE(NAME, __VA_ARGS__), false>,
