/**
 * Native plans: what one way of running the experts needs to exist on the device (a lane table, the streams of its lanes). Experts that move
 * and shares that change are updates of the table; only another layout, another number of lanes or another strategy is another native plan. The
 * few used last are kept, with the partition that they run in, so that switching back builds nothing.
 */

import { graphKey } from '@nexus/graphs'
import { LaneSet, type Stream } from '@nexus/native'
import type { Layout, SliceEnforcer } from '@nexus/slices'
import type { StreamPool } from '@nexus/streams'
import { binding, call, type LayerHandle, type LayerPlanHandle, laneSetOf, strategyKinds, streamOf } from '../native.js'
import type { LayerConfig } from '../options.js'
import type { StrategyName } from './options.js'

/** How the next steps are to be run: plain data, but for the pool of streams. */
export interface Wanted {
  readonly strategy: StrategyName
  /** Plans with one key share all that has to be built. */
  readonly key: string
  /** Lane of each expert; empty with 'fused', which has no lanes. */
  readonly laneOf: readonly number[]
  readonly laneNames: readonly string[]
  /** SMs by lane; empty where lanes have no SMs of their own. */
  readonly shares: readonly number[]
  /** What is built for 'tiered'. */
  readonly layout: Layout | null
  /** Whose streams 'streams' uses. */
  readonly pool: StreamPool | null
  /** Slice of the layout, or stream of the pool, in which the shared expert runs beside the others. */
  readonly shared: string | number | null
}

export const fusedWanted: Wanted = {
  strategy: 'fused',
  key: 'fused',
  laneOf: [],
  laneNames: [],
  shares: [],
  layout: null,
  pool: null,
  shared: null,
}

/** Where the lanes of a layer's experts were computed. */
export interface LaneTrace {
  readonly strategy: StrategyName
  /** By lane: the slice's or stream's name, its experts, and the SMs (CPU: virtual workers) that computed tiles of it. */
  readonly lanes: readonly {
    readonly name: string
    readonly experts: readonly number[]
    readonly units: readonly number[]
  }[]
}

const same = (a: readonly number[], b: readonly number[]): boolean =>
  a.length === b.length && a.every((value, i) => value === b[i])

/** What plans are made for. */
export interface PlanSite {
  readonly config: LayerConfig
  readonly layer: LayerHandle
  readonly enforcer: SliceEnforcer | null
  readonly trace: boolean
}

/** One native plan. 'fused' has nothing native. */
export class ExecPlan {
  readonly strategy: StrategyName
  readonly key: string
  readonly handle: LayerPlanHandle | null
  readonly lanes: LaneSet | null
  readonly #site: PlanSite
  readonly #layout: Layout | null
  /** By a number of stream, logits and bucket: building a key takes longer than a step's launch may. */
  readonly #graphKeys = new Map<number, string>()
  #wanted: Wanted

  /** @throws what building the partition, the table or the plan throws; nothing is left then */
  constructor(wanted: Wanted, stream: Stream, site: PlanSite) {
    this.strategy = wanted.strategy
    this.key = wanted.key
    this.#site = site
    this.#wanted = wanted
    this.#layout = wanted.layout
    if (wanted.strategy === 'fused') {
      this.handle = null
      this.lanes = null
      return
    }
    const { layout } = wanted
    if (layout !== null) site.enforcer?.prepare(layout)
    let lanes: LaneSet | null = null
    try {
      const { laneOf, laneNames } = wanted
      lanes = new LaneSet({ stream, laneOf, lanes: laneNames.length, ...sharesOf(wanted), trace: site.trace })
      const streams = laneStreams(wanted, site)
      this.handle = call(() =>
        binding().core.planCreate(site.layer, {
          strategy: strategyKinds.indexOf(wanted.strategy),
          lanes: lanes && laneSetOf(lanes),
          streams: streams.lanes.map(streamOf),
          sharedStream: streams.shared && streamOf(streams.shared),
        }),
      )
      this.lanes = lanes
    } catch (error) {
      lanes?.dispose()
      if (layout !== null) site.enforcer?.release(layout)
      throw error
    }
  }

  get wanted(): Wanted {
    return this.#wanted
  }

  /** Takes over experts and shares of another plan with the same key; ordered on `stream`, which every earlier step is before. */
  follow(wanted: Wanted, stream: Stream): void {
    if (wanted === this.#wanted) return
    const moved = !same(wanted.laneOf, this.#wanted.laneOf) || !same(wanted.shares, this.#wanted.shares)
    if (moved) this.lanes?.update({ laneOf: wanted.laneOf, ...sharesOf(wanted), stream })
    this.#wanted = wanted
  }

  /** Forgets what was traced, in stream order. */
  clearTrace(stream: Stream): void {
    // What would fail here fails the step that comes next on the stream as well, and is told there.
    if (this.lanes?.traced === true) this.lanes.trace(stream).catch(() => undefined)
  }

  /** The lanes and what computed them, behind what is queued on `stream`. @throws RangeError when no trace was asked for */
  async trace(stream: Stream): Promise<LaneTrace> {
    const { strategy, lanes } = this
    const { laneNames, laneOf } = this.#wanted
    if (lanes === null) return { strategy, lanes: [] }
    const units = await lanes.trace(stream)
    const named = laneNames.map((name, lane) => ({
      name,
      experts: laneOf.flatMap((of, expert) => (of === lane ? [expert] : [])),
      units: units[lane] ?? [],
    }))
    return { strategy, lanes: named }
  }

  /** The key of the graph for steps of a bucket that are queued on the stream with this number. */
  graphKey(stream: number, withLogits: boolean, bucket: number): string {
    const place = (2 * stream + (withLogits ? 1 : 0)) * 2 ** 31 + bucket
    const found = this.#graphKeys.get(place)
    if (found !== undefined) return found
    const { dtype } = this.#site.config.experts
    const { topK } = this.#site.config.rule
    const made = graphKey({
      bucket,
      layout: this.#layout?.key ?? null,
      strategy: this.strategy,
      assignment: this.lanes?.lanes ?? null,
      dtype,
      topK,
      withLogits,
      stream,
    })
    this.#graphKeys.set(place, made)
    return made
  }

  /** Every key of a graph that may have been recorded with this plan. */
  graphKeys(): IterableIterator<string> {
    return this.#graphKeys.values()
  }

  /** Queued steps still run to their end. */
  dispose(): void {
    const { handle } = this
    if (handle !== null) call(() => binding().native.release(handle))
    this.lanes?.dispose()
    if (this.#layout !== null) this.#site.enforcer?.release(this.#layout)
  }
}

/** Shares matter where one launch is divided. */
function sharesOf({ strategy, shares }: Wanted): { readonly shares?: readonly number[] } {
  return strategy === 'cooperative' ? { shares } : {}
}

function laneStreams(wanted: Wanted, { enforcer }: PlanSite): { lanes: Stream[]; shared: Stream | null } {
  const { layout, pool, shared, laneNames } = wanted
  if (layout !== null) {
    const partition = enforcer?.partition(layout) ?? null
    if (partition === null) throw new RangeError(`layout '${layout.key}': expected a partition, the device has none`)
    return {
      lanes: laneNames.map((name) => partition.stream(name)),
      // A stream of its own, also where the slice has experts too: it must not wait for them.
      shared: shared === null ? null : partition.stream(shared, { index: 1 }),
    }
  }
  if (pool === null) return { lanes: [], shared: null }
  return {
    lanes: laneNames.map((_, lane) => pool.stream(lane)),
    shared: typeof shared === 'number' ? pool.stream(shared) : null,
  }
}

/** The native plans of a layer, the one used last first to stay. */
export class ExecPlans {
  readonly #site: PlanSite
  readonly #most: number
  readonly #dropped: (plan: ExecPlan) => void
  readonly #plans = new Map<string, ExecPlan>()
  #kept: ExecPlan | null = null

  /** @param dropped is called with every plan that is about to go */
  constructor(site: PlanSite, most: number, dropped: (plan: ExecPlan) => void) {
    this.#site = site
    this.#most = most
    this.#dropped = dropped
  }

  /**
   * The native plan of what is wanted, made if it was not, and up to date for steps that come next on `stream`.
   * @throws what building it throws
   */
  get(wanted: Wanted, stream: Stream): ExecPlan {
    const found = this.#plans.get(wanted.key)
    const plan = found ?? new ExecPlan(wanted, stream, this.#site)
    plan.follow(wanted, stream)
    this.#plans.delete(wanted.key)
    this.#plans.set(wanted.key, plan)
    for (const [key, old] of this.#plans) {
      if (this.#plans.size <= this.#most) break
      if (old === plan || old === this.#kept) continue
      this.#plans.delete(key)
      this.#drop(old)
    }
    return plan
  }

  /** A plan that always stays. */
  keep(plan: ExecPlan): void {
    this.#kept = plan
  }

  dispose(): void {
    const plans = [...this.#plans.values()]
    this.#plans.clear()
    for (const plan of plans) this.#drop(plan)
  }

  #drop(plan: ExecPlan): void {
    this.#dropped(plan)
    plan.dispose()
  }
}
