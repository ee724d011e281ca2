// Telemetry plane: what a device consumes, sampled on one native thread.
//
// Why a thread: a question to NVML takes milliseconds (the energy counter of an H200: 3.3 ms) and may never be answered
// (a driver that hangs). So nobody who calls a function of this header waits for NVML: samples gather in a ring that
// each monitor has, and `View::blocked_call` says which question the thread is waiting for, and since when. Linux's own
// counters of the processor (RAPL) cost microseconds and are also read on the caller's thread, when asked for.
//
// Figures that cannot be known are NaN, and the column's reason says why.
#pragma once
#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "nexus/error.h"

namespace nexus {

/// The columns of a sample. binding.ts has the same list in the same order.
enum EnergyColumn : int {
  kEnergyTime,          ///< ms, telemetry_now_ms() when the energy counter was read
  kEnergyJoules,        ///< J since the source was opened: a counter's wraps are undone, what a reset hides is left out
  kEnergyMemoryJoules,  ///< J of the memory alone, a part of the above (RAPL's dram domains)
  kEnergyResets,        ///< how often the counter went back so far (a driver that was reloaded)
  kEnergyTicks,         ///< how often it was seen to have moved so far
  kPowerWatts,          ///< instant
  kPowerAverageWatts,   ///< the driver's own average (1 s on Hopper)
  kPowerMemoryWatts,    ///< of the device's memory alone
  kUtilisationGpu,      ///< 0 to 1: share of time in which any kernel ran (not: share of SMs)
  kUtilisationMemory,   ///< 0 to 1: share of time in which device memory was read or written
  kActivitySm,          ///< 0 to 1, GPM: SMs that had work
  kActivityOccupancy,   ///< 0 to 1, GPM: warps resident, of the most that fit
  kActivityTensor,      ///< 0 to 1, GPM: tensor pipes busy
  kActivityDram,        ///< 0 to 1, GPM: memory bandwidth in use
  kThrottleBits,        ///< NVML's clock event reasons as a bit set
  kEnergyColumns
};
using EnergySample = std::array<double, kEnergyColumns>;
using EnergyReasons = std::array<std::string, kEnergyColumns>;

/// Milliseconds of the steady clock.
double telemetry_now_ms();

struct EnergyMonitorOptions {
  /// "cpu", or the UUID of a GPU or a MIG instance. The prefix ("GPU-", "MIG-") does not matter: CUDA shows an
  /// instance's UUID under either.
  std::string device;
  double interval_ms = 100;  ///< between samples, 1 to 3 600 000
  int history = 6000;        ///< samples that are kept, at least 2; the oldest goes first
};

/// Samples one device for as long as it lives. Monitors of a device share its source; all share the thread, which ends
/// with the last of them. Neither start() nor the destructor nor anything else here waits for NVML.
class EnergyMonitor {
 public:
  /// NEXUS_NVML_PATH and NEXUS_RAPL_PATH are read now. kInvalidArgument for wrong options; a device or a library that
  /// is not there is no error but every column's reason.
  static std::shared_ptr<EnergyMonitor> start(const EnergyMonitorOptions& options);
  ~EnergyMonitor();
  EnergyMonitor(const EnergyMonitor&) = delete;
  EnergyMonitor& operator=(const EnergyMonitor&) = delete;

  /// Asks for a sample now, besides the regular ones. Returns the time: a sample at or after it follows; for the CPU it
  /// is there when this returns.
  double request();

  struct View {
    std::vector<EnergySample> samples;  ///< oldest first
    EnergyReasons reasons;              ///< why a column's latest value is NaN; empty where it is known
    int64_t dropped = 0;                ///< samples that had to leave the ring so far
    std::string blocked_call;           ///< the NVML function that the thread now waits for, or empty
    double blocked_ms = 0;              ///< for how long
  };
  /// The samples later than `after_ms`.
  View read(double after_ms) const;

  struct State;

 private:
  explicit EnergyMonitor(std::shared_ptr<State> state) : state_(std::move(state)) {}
  std::shared_ptr<State> state_;
};

// ---- what can be metered -----------------------------------------------------------------------------------------

struct MigInstance {
  std::string uuid;
  int gpu_instance = -1, compute_instance = -1;  ///< -1 unknown, as below
  int multiprocessors = -1;
  int64_t memory_bytes = -1;
  std::string detail;  ///< what could not be read, and why
};
struct GpuDevice {
  int index = 0;  ///< NVML's, which CUDA_VISIBLE_DEVICES does not change
  std::string uuid, name;
  std::string mig_mode;  ///< "enabled", "disabled", "unsupported", or why it is not known
  int64_t memory_bytes = -1;
  std::vector<MigInstance> mig;
  std::string detail;
};
struct EnergyInventory {
  bool nvml_available = false;
  std::string nvml_library, nvml_detail;  ///< detail: the driver's version, or why it is not available
  std::vector<GpuDevice> gpus;
  std::vector<std::string> rapl_domains;
  std::string rapl_detail;
};
/// Asks the sampler thread for the inventory; the answer is had, once, from inventory_answer() under this number.
uint64_t request_inventory();
std::optional<EnergyInventory> inventory_answer(uint64_t request);

/// What the sampler thread waits for at this moment, and since when.
struct BlockedCall {
  std::string call;  ///< empty: nothing
  double ms = 0;
};
BlockedCall blocked_call();

}  // namespace nexus
