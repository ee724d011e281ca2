// The shapes of the Hopper kernel (hopper_grouped.cuh) for one dtype. Their names, and what they are for, are in
// hopper.h; all have one order of sums, so a row's bits do not tell them apart.
#pragma once
#include "data/cuda/hopper.h"
#include "data/cuda/hopper_grouped.cuh"

namespace nexus::cuda::hopper {

template <class T, int CLUSTER>
using Chosen = Shape<T, kWgmmaRows, kWgmmaStages, CLUSTER, 128, 48, 216, 32, Options<2, true>>;
template <class T>
using Few = Shape<T, kWgmmaFewRows, kWgmmaFewStages, 1, 128, 48, 216, 32, Options<2, true>>;
template <class T, int CLUSTER>
using Sharing = Shape<T, kWgmmaShareRows, kWgmmaShareStages, CLUSTER, 120, 72, 144, 0, Options<2, false>>;
// Without lanes, for which each would cost another half megabyte of code.
template <class T>
using Fewer = Shape<T, kWgmmaFewerRows, kWgmmaFewerStages, 1, 128, 48, 216, 32, Options<2, false, 2>>;
template <class T>
using Narrow = Shape<T, kWgmmaFewRows, kWgmmaNarrowStages, 1, 128, 48, 216, 32, Options<1, false, 2>>;
template <class T>
using NarrowFewer = Shape<T, kWgmmaFewerRows, kWgmmaNarrowFewerStages, 1, 128, 48, 216, 32, Options<1, true, 2>>;
template <class T>
using NarrowFewerRest = Shape<T, kWgmmaFewerRows, kWgmmaNarrowFewerStages, 1, 128, 48, 216, 32, Options<1, false, 2>>;
template <class T>
using NarrowMore = Shape<T, kWgmmaMoreRows, kWgmmaNarrowMoreStages, 1, 128, 48, 216, 32, Options<1, true>>;

}  // namespace nexus::cuda::hopper
