/**
 * The raw addon, typed. Only a package's `src/native.ts` and this package's own files touch it; everything here expects
 * validated arguments (types and ranges are checked in TypeScript, sizes against buffers in C++).
 *
 * Devices are numbers: -1 is the CPU, n >= 0 is `cuda:n`. DTypes are the numbers of `dtype.ts`. Handles are opaque externals
 * with a type tag: the wrong kind, or one that was released, throws instead of crashing. A function that fails throws (or rejects
 * with) an `Error` whose `code` is `ERR_NEXUS_*`, plus `nativeError`, `requested`, `available` where they apply;
 * `toNexusError` in `errors.ts` makes the public class of it.
 */
declare const brand: unique symbol
export type Handle<Kind extends string> = { readonly [brand]: Kind }
export type StreamHandle = Handle<'stream'>
export type EventHandle = Handle<'event'>
export type BufferHandle = Handle<'buffer'>
export type LayerHandle = Handle<'layer'>
export type EnergyMonitorHandle = Handle<'energy monitor'>
export type GraphHandle = Handle<'graph'>
export type PartitionHandle = Handle<'partition'>
export type LaneSetHandle = Handle<'lane set'>
export type CountRingHandle = Handle<'count ring'>
export type LayerPlanHandle = Handle<'layer plan'>
export type LayerGraphHandle = Handle<'layer graph'>

export type TypedArray = Float32Array | Uint16Array | Int32Array | Uint8Array

export interface RawCudaDevice {
  index: number
  name: string
  uuid: string
  computeMajor: number
  computeMinor: number
  multiprocessors: number
  memoryBytes: number
  l2Bytes: number
  sharedMemoryPerBlockOptin: number
  memoryPools: boolean
}
export interface RawSystemInfo {
  cpuName: string
  cpuIsa: string
  cpuIsas: string[]
  cpuCores: number
  cpuThreads: number
  memoryBytes: number
  cudaCompiled: boolean
  cudaStatus: string
  cudaError: string
  cudaRuntimeVersion: number
  cudaDriverVersion: number
  greenContexts: boolean
  tensorMaps: boolean
  devices: RawCudaDevice[]
  nvml: { available: boolean; detail: string; library: string; migModes: string[]; energyCounter: boolean }
  raplDomains: string[]
  raplDetail: string
}
export interface RawMemoryStats {
  liveBytes: number
  liveBuffers: number
  peakBytes: number
  freeBytes: number
  totalBytes: number
}

/** Fields and numbers are those of RouterDesc in kernels/include/nexus/router.h. */
export interface RawRouterDesc {
  experts: number
  topK: number
  score: number
  groups: number
  keepGroups: number
  groupValue: number
  weigh: number
  jitter: number
  normalize: number
  epsilon: number
  scale: number
}
/** MlpDesc in experts.h. */
export interface RawMlpDesc {
  dtype: number
  kind: number
  activation: number
  limit: number
  alpha: number
  experts: number
  input: number
  hidden: number
  output: number
  /** @default false */
  inPanels?: boolean
}
/** LayerDesc in layer.h. */
export interface RawLayerDesc {
  router: RawRouterDesc
  routerDtype: number
  scaleInput: boolean
  experts: RawMlpDesc
  combine: number
  shared: RawMlpDesc | null
  sharedGate: boolean
  /** @default false */
  batchInvariant?: boolean
}
/** GroupedLinearDesc in experts.h. */
export interface RawLinearDesc {
  dtype: number
  experts: number
  k: number
  n: number
  epilogue: number
  limit: number
  alpha: number
  /** @default false */
  inPanels?: boolean
}
/** VariantCandidate in variants.h. */
export interface RawVariantCandidate {
  name: string
  /** Of its sums: variants of one order give a row the same bits. '' where it changes with the rows. */
  order: string
  /** What runs where no table says otherwise; when batch-invariant. */
  heuristic: boolean
  invariant: boolean
  /** A step whose experts all have it is kernels of its own: timing one linear layer says too little of it. */
  fusedStep: boolean
}
/** VariantKey in variants.h. */
export interface RawVariantKey {
  dtype: number
  experts: number
  k: number
  n: number
  gated: boolean
}
export interface RawLayerWeights {
  routerWeight: BufferHandle | null
  routerBias: BufferHandle | null
  selectBias: BufferHandle | null
  expertWeight: (BufferHandle | null)[]
  expertBias: (BufferHandle | null)[]
  sharedWeight: (BufferHandle | null)[]
  sharedBias: (BufferHandle | null)[]
  sharedGate: BufferHandle | null
}
/** Numbers of Enforcement in runtime.h. */
export const enforcementKinds = ['hardware', 'cooperative', 'advisory', 'none'] as const
/** Numbers of Strategy in layer.h. */
export const strategyKinds = ['fused', 'tiered', 'streams', 'cooperative'] as const
/** PartitionInfo in runtime.h. */
export interface RawPartitionInfo {
  units: number
  granularity: number
  minimum: number
  enforcement: number
  reason: string
}
/** Partition::Grant in runtime.h. */
export interface RawGrant {
  units: number
  enforcement: number
  reason: string
}
/** CountRing::Reading in step.h. Sequences are numbers: 2^53 steps are centuries. */
export interface RawRingReading {
  steps: Float64Array
  tokens: Int32Array
  counts: Int32Array
  lost: number
  next: number
}
/** ExecPlan in layer.h; `streams` by lane with 'tiered' and 'streams', else empty. */
export interface RawLayerPlan {
  strategy: number
  lanes: LaneSetHandle | null
  streams: StreamHandle[]
  sharedStream: StreamHandle | null
}
/**
 * `bytes`: device memory of the executable graph; `bytesEstimated`: others allocated meanwhile, `bytes` is the most that is believed of it;
 * `captureMs`: capture, instantiation and upload.
 */
export interface RawGraphInfo {
  nodes: number
  bytes: number
  bytesEstimated: boolean
  captureMs: number
}
/** Device time of each phase in milliseconds; a step by a graph has no phases, only the total: they are -1. */
export interface RawStepStats {
  counts: Int32Array
  routerMs: number
  expertsMs: number
  sharedMs: number
  combineMs: number
  totalMs: number
}

/**
 * Figures of an energy sample, in their order: EnergyColumn in kernels/include/nexus/telemetry.h says what each is. NaN is unknown. Times
 * are milliseconds of the steady clock.
 */
export const energyColumns = [
  'timeMs',
  'joules',
  'memoryJoules',
  'resets',
  'ticks',
  'watts',
  'averageWatts',
  'memoryWatts',
  'gpuUtilisation',
  'memoryUtilisation',
  'smActivity',
  'smOccupancy',
  'tensorActivity',
  'dramActivity',
  'throttleBits',
] as const
export type EnergyColumn = (typeof energyColumns)[number]
export interface RawEnergyView {
  /** Samples one after the other, oldest first, each with all columns. */
  samples: Float64Array
  /** For each column why it is unknown now; '' where it is known. */
  reasons: string[]
  /** Samples that had to leave the ring so far. */
  dropped: number
  /** The NVML function that the sampler thread waits for, and since when; '' for none. */
  blockedCall: string
  blockedMs: number
}
export interface RawMigInstance {
  uuid: string
  /** -1 is unknown, here and below. */
  gpuInstance: number
  computeInstance: number
  multiprocessors: number
  memoryBytes: number
  detail: string
}
export interface RawGpuDevice {
  index: number
  uuid: string
  name: string
  migMode: string
  memoryBytes: number
  mig: RawMigInstance[]
  detail: string
}
export interface RawEnergyInventory {
  nvmlAvailable: boolean
  nvmlLibrary: string
  nvmlDetail: string
  gpus: RawGpuDevice[]
  raplDomains: string[]
  raplDetail: string
}

export interface NativeBinding {
  native: {
    systemInfo(): RawSystemInfo
    memoryStats(device: number): RawMemoryStats
    resetPeak(device: number): void
    setCpuThreads(n: number): void
    cpuThreads(): number

    /** `priority`: 0 normal, negative more urgent. */
    streamCreate(
      device: number,
      priority: number,
      maxWidth?: number,
      shareSm?: boolean,
      readAheadBytes?: number,
    ): StreamHandle
    streamSynchronize(stream: StreamHandle): Promise<void>
    streamWait(stream: StreamHandle, event: EventHandle): void
    /** SMs (CPU: virtual workers) that its work may use. */
    streamWidth(stream: StreamHandle): number
    streamCapturing(stream: StreamHandle): boolean
    /** After a begin exactly one of end and abort. What is queued between them on the stream, and on streams forked from it by events and joined again, is recorded. */
    graphBegin(stream: StreamHandle): void
    graphEnd(stream: StreamHandle): GraphHandle
    graphAbort(stream: StreamHandle): void
    graphLaunch(graph: GraphHandle, stream: StreamHandle): void
    graphInfo(graph: GraphHandle): RawGraphInfo
    eventCreate(device: number): EventHandle
    eventRecord(event: EventHandle, stream: StreamHandle): void
    eventReady(event: EventHandle): boolean
    eventElapsedMs(start: EventHandle, end: EventHandle): number
    /** Drops a handle's reference now (any kind); using it afterwards throws ERR_NEXUS_DISPOSED. Twice is fine. */
    release(handle: Handle<string>): void

    bufferCreate(stream: StreamHandle, bytes: number): BufferHandle
    bufferBytes(buffer: BufferHandle): number
    /** Another stream than the one it was made on uses it from now on. */
    bufferRecordUse(buffer: BufferHandle, stream: StreamHandle): void
    bufferFill(stream: StreamHandle, buffer: BufferHandle, byte: number): void
    /**
     * Copies `source` (elements of `fromDtype`; raw bytes where it equals `toDtype`) into the buffer at `byteOffset`, converting
     * f32/bf16/f16 as asked. Synchronous snapshot of `source`: the caller may change it at once. Stream-ordered.
     */
    upload(
      stream: StreamHandle,
      buffer: BufferHandle,
      byteOffset: number,
      source: TypedArray,
      fromDtype: number,
      toDtype: number,
    ): void
    /** As `upload`, but converts and stages off the JS thread; `source` must not change until the promise settles. */
    uploadAsync(
      stream: StreamHandle,
      buffer: BufferHandle,
      byteOffset: number,
      source: TypedArray,
      fromDtype: number,
      toDtype: number,
    ): Promise<void>
    /**
     * Reads `elements` of `dtype` at `byteOffset`. `as`: 'f32' converts to a Float32Array, 'raw' gives a Uint16Array for bf16/f16,
     * Int32Array for i32, Float32Array for f32.
     */
    download(
      stream: StreamHandle,
      buffer: BufferHandle,
      byteOffset: number,
      elements: number,
      dtype: number,
      as: 'f32' | 'raw',
    ): Promise<Float32Array | Uint16Array | Int32Array>
    /** Device-to-device, stream-ordered. */
    copy(
      stream: StreamHandle,
      dst: BufferHandle,
      dstOffset: number,
      src: BufferHandle,
      srcOffset: number,
      bytes: number,
    ): void
    cast(
      stream: StreamHandle,
      src: BufferHandle,
      fromDtype: number,
      dst: BufferHandle,
      toDtype: number,
      elements: number,
    ): void
    /** Fills with seeded normal deviates times `scale` (Philox, counter-based: same bits on every device and thread count). */
    fillNormal(
      stream: StreamHandle,
      buffer: BufferHandle,
      dtype: number,
      elements: number,
      seed: number,
      scale: number,
    ): void
  }
  routerKernels: {
    routeWorkspaceBytes(device: number, desc: RawRouterDesc, tokens: number): number
    route(
      stream: StreamHandle,
      desc: RawRouterDesc,
      logits: BufferHandle,
      selectBias: BufferHandle | null,
      tokens: number,
      expertIds: BufferHandle,
      weights: BufferHandle,
      counts: BufferHandle,
      offsets: BufferHandle,
      order: BufferHandle,
      workspace: BufferHandle,
      ring: CountRingHandle | null,
    ): void
    routerLogits(
      stream: StreamHandle,
      x: BufferHandle,
      xDtype: number,
      weight: BufferHandle,
      weightDtype: number,
      bias: BufferHandle | null,
      tokens: number,
      hidden: number,
      experts: number,
      logits: BufferHandle,
    ): void
    mlpWorkspaceBytes(device: number, desc: RawMlpDesc, rows: number): number
    groupedMlp(
      stream: StreamHandle,
      desc: RawMlpDesc,
      weight: (BufferHandle | null)[],
      bias: (BufferHandle | null)[],
      x: BufferHandle,
      tokens: number,
      topK: number,
      offsets: BufferHandle,
      order: BufferHandle | null,
      inputScale: BufferHandle | null,
      rows: BufferHandle,
      workspace: BufferHandle,
      /** Only the experts of one lane (`lane` >= 0), or all in one cooperative launch (-1); null: all experts, undivided. */
      lanes: LaneSetHandle | null,
      lane: number,
    ): void
    /**
     * `rows` is tokens·topK; a layer's steps use the variant of their tokens' bucket: give the bucket's rows for it, and the layer as
     * `of`, whose choices may be measured or batch-invariant ones.
     */
    variant(device: number, desc: RawMlpDesc, layer: number, rows: number, of?: LayerHandle | null): string
    /** Every variant that computes the layer for so many rows on this device. */
    candidates(device: number, linear: RawLinearDesc, rows: number): RawVariantCandidate[]
    /** Whether the weights of a linear layer can lie in panels (weight_panels.h), and whether the device's kernels are faster then. */
    panelUse(device: number, linear: RawLinearDesc): { fit: boolean; pay: boolean }
    /** Lays weights [experts, n, k] into panels, or back into rows, where they are; `linear.inPanels` does not matter. */
    layPanels(stream: StreamHandle, linear: RawLinearDesc, weight: BufferHandle, toRows: boolean): void
    /**
     * One grouped linear layer by the variant of that name. `gather`: rows are read through `order`, else they lie in its order; `scatter`:
     * they are written through it. `weightOffset` counts elements.
     */
    groupedLinear(
      stream: StreamHandle,
      linear: RawLinearDesc,
      rows: number,
      rowsPerInput: number,
      gather: boolean,
      scatter: boolean,
      input: BufferHandle,
      weight: BufferHandle,
      weightOffset: number,
      offsets: BufferHandle,
      order: BufferHandle,
      output: BufferHandle,
      variant: string,
    ): void
    /** What a table of measured choices is made for, such as `cpu/avx2` or `sm_90/132`. */
    deviceClass(device: number): string
    /** The table of layers made from now on; null: none. `rows` are those of a token bucket. */
    setVariantTable(
      deviceClass: string,
      choices: readonly (RawVariantKey & { rows: number; variants: readonly string[] })[] | null,
      orders: readonly (RawVariantKey & { order: string })[],
    ): void
    combine(
      stream: StreamHandle,
      mode: number,
      dtype: number,
      rows: BufferHandle,
      weights: BufferHandle | null,
      shared: BufferHandle | null,
      sharedScale: BufferHandle | null,
      tokens: number,
      width: number,
      topK: number,
      out: BufferHandle,
    ): void
    sharedGate(
      stream: StreamHandle,
      x: BufferHandle,
      weight: BufferHandle,
      dtype: number,
      tokens: number,
      hidden: number,
      scale: BufferHandle,
    ): void
    /**
     * One unfused linear layer over `rows` rows with one expert's matrix: the baseline's product. `weightOffset` and `biasOffset` count
     * elements; `offsets` is i32 [2] on the device and holds [0, rows].
     */
    linear(
      stream: StreamHandle,
      dtype: number,
      input: BufferHandle,
      rows: number,
      k: number,
      n: number,
      weight: BufferHandle,
      weightOffset: number,
      bias: BufferHandle | null,
      biasOffset: number,
      output: BufferHandle,
      offsets: BufferHandle,
    ): void
    /** out[i] = x[order[first + i] / rowsPerInput], i < n. The entries of `order` are trusted: they come from `route`. */
    gatherRows(
      stream: StreamHandle,
      dtype: number,
      x: BufferHandle,
      order: BufferHandle,
      first: number,
      n: number,
      rowsPerInput: number,
      width: number,
      out: BufferHandle,
    ): void
    activate(
      stream: StreamHandle,
      dtype: number,
      epilogue: number,
      limit: number,
      alpha: number,
      input: BufferHandle,
      n: number,
      width: number,
      out: BufferHandle,
    ): void
    /** acc (f32 [tokens, width]) += the weighted rows of one expert; `weights` is the whole [tokens, topK] buffer, its size gives tokens. */
    indexAdd(
      stream: StreamHandle,
      dtype: number,
      rows: BufferHandle,
      weights: BufferHandle,
      order: BufferHandle,
      first: number,
      n: number,
      topK: number,
      width: number,
      acc: BufferHandle,
    ): void
  }
  core: {
    layerCreate(device: number, desc: RawLayerDesc, weights: RawLayerWeights): LayerHandle
    /** The bucket of a number of tokens: see token_bucket() in layer.h. */
    tokenBucket(tokens: number): number
    /** Holds its lane set and streams. */
    planCreate(layer: LayerHandle, plan: RawLayerPlan): LayerPlanHandle
    /**
     * One stream-ordered step; no promise, nothing measured. Plain arguments: hot path. A null plan is fused. On a stream that is being
     * recorded it becomes part of that graph, and the ring must be null.
     */
    layerEnqueue(
      layer: LayerHandle,
      stream: StreamHandle,
      x: BufferHandle,
      tokens: number,
      logits: BufferHandle | null,
      out: BufferHandle,
      plan: LayerPlanHandle | null,
      ring: CountRingHandle | null,
    ): void
    /** The same step with its counts and phase times, delivered when the device has finished it. */
    layerForward(
      layer: LayerHandle,
      stream: StreamHandle,
      x: BufferHandle,
      tokens: number,
      logits: BufferHandle | null,
      out: BufferHandle,
      idsOut: BufferHandle | null,
      weightsOut: BufferHandle | null,
      plan: LayerPlanHandle | null,
      ring: CountRingHandle | null,
    ): Promise<RawStepStats>
    /** Records a step for up to `bucket` tokens; an eager step on this stream with this plan came before. */
    layerCapture(
      layer: LayerHandle,
      stream: StreamHandle,
      bucket: number,
      withLogits: boolean,
      plan: LayerPlanHandle | null,
      ring: CountRingHandle | null,
    ): LayerGraphHandle
    /** As layerEnqueue, by a graph: tokens <= its bucket, logits given exactly when it was recorded with them. */
    layerReplay(
      layer: LayerHandle,
      graph: LayerGraphHandle,
      stream: StreamHandle,
      x: BufferHandle,
      tokens: number,
      logits: BufferHandle | null,
      out: BufferHandle,
    ): void
    /** As layerForward, by a graph. */
    layerReplayForward(
      layer: LayerHandle,
      graph: LayerGraphHandle,
      stream: StreamHandle,
      x: BufferHandle,
      tokens: number,
      logits: BufferHandle | null,
      out: BufferHandle,
      idsOut: BufferHandle | null,
      weightsOut: BufferHandle | null,
    ): Promise<RawStepStats>
    layerGraphInfo(graph: LayerGraphHandle): RawGraphInfo
    layerWeightBytes(layer: LayerHandle): number
    layerWorkspaceBytes(layer: LayerHandle): number
  }
  slices: {
    partitionInfo(device: number): RawPartitionInfo
    /** Milliseconds; units by slice. */
    partitionCreate(device: number, units: number[]): PartitionHandle
    partitionGrants(partition: PartitionHandle): RawGrant[]
    partitionStream(partition: PartitionHandle, slice: number, priority: number, readAheadBytes?: number): StreamHandle
    /** `laneOf`: by expert, 0 to lanes-1. `shares`: units by lane for cooperative launches, or null. Stream-ordered. */
    laneSetCreate(
      stream: StreamHandle,
      laneOf: Int32Array,
      lanes: number,
      shares: Int32Array | null,
      trace: boolean,
    ): LaneSetHandle
    laneSetUpdate(lanes: LaneSetHandle, stream: StreamHandle, laneOf: Int32Array, shares: Int32Array | null): void
    /** Clears and returns, behind the stream's work, the SMs (workers) seen by lane: [lanes][8] words of bits. */
    laneSetTrace(lanes: LaneSetHandle, stream: StreamHandle): Promise<Int32Array>
  }
  profiler: {
    countRingCreate(device: number, experts: number, capacity: number): CountRingHandle
    countRingRead(ring: CountRingHandle, from: number): RawRingReading
  }
  /** Nothing in here waits for NVML: one native thread asks it. */
  energy: {
    /** The clock of the samples. */
    nowMs(): number
    /** `device`: 'cpu', or the UUID of a GPU or MIG instance, with or without its prefix. */
    monitorStart(device: string, intervalMs: number, history: number): EnergyMonitorHandle
    /** Asks for a sample now, besides the regular ones; one at or after the returned time follows (CPU: is there). */
    monitorRequest(monitor: EnergyMonitorHandle): number
    /** The samples later than `afterMs`. */
    monitorRead(monitor: EnergyMonitorHandle, afterMs: number): RawEnergyView
    /** The answer is had, once, from `inventoryAnswer` under the returned number; null until it is there. */
    inventoryRequest(): number
    inventoryAnswer(request: number): RawEnergyInventory | null
    blockedCall(): { call: string; ms: number }
  }
}
