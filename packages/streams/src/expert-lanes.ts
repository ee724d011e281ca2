/**
 * The experts of one tenant in the slices of a plan: a lane for each slice that has experts, each launched on a stream of its slice, forked
 * from the tenant's stream and joined to it again; or all in one launch whose blocks are divided by the slices' shares. Which expert is in
 * which lane is a table on the device, and never changes a bit of the result.
 */
import { checkInteger, describe, type Event, LaneSet, type Stream, Tensor } from '@nexus/native'
import type { Plan } from '@nexus/slices'
import { setTensorStream } from './native.js'
import { type Placement, populated } from './placement.js'
import { fork, join } from './pool.js'
import type { ExpertsTenant } from './tenant.js'

/** A lane of a tenant, as its trace and times name it. */
export interface LaneUse {
  readonly slice: string
  /** SMs (CPU: virtual workers) that computed for it, ascending. */
  readonly units: readonly number[]
}

type Experts = Pick<ExpertsTenant, 'experts' | 'x' | 'routed' | 'inputScale'>

/** Gives an event for each mark of a timed step. */
export type NewEvent = () => Event

/** What a timed step marked: a lane's slice, begin and end. */
export interface LaneMarks {
  readonly slice: string
  readonly begin: Event
  readonly end: Event
}

export class ExpertLanes {
  readonly #work: Experts
  readonly #place: Placement
  readonly #trace: boolean
  readonly #out: Tensor
  readonly #ownsOut: boolean
  #plan: Plan
  /** Slice of each lane, as indices of the plan's slices; empty: undivided. */
  #slices: readonly number[] = []
  #lanes: LaneSet | null = null

  /** @throws RangeError when the plan is for another number of experts; TypeError, OutOfMemoryError */
  constructor(plan: Plan, place: Placement, work: Experts & { readonly out?: Tensor }, trace: boolean) {
    this.#work = work
    this.#place = place
    this.#plan = plan
    this.#trace = trace
    const { spec } = work.experts
    const name = `tenant '${place.spec.name}'`
    if (place.spread && plan.sliceOf.length !== spec.numExperts) {
      throw new RangeError(`${name}: expected experts for a plan of ${plan.sliceOf.length}, got ${spec.numExperts}`)
    }
    const rows =
      checkInteger(`${name}: routed.tokens`, work.routed.tokens) *
      checkInteger(`${name}: routed.topK`, work.routed.topK)
    const { out } = work
    if (out !== undefined && (out.shape[0] !== rows || out.shape[1] !== spec.outputDim || out.dtype !== spec.dtype)) {
      throw new RangeError(
        `${name}: out: expected ${spec.dtype} [${rows}, ${spec.outputDim}], got ${out.dtype} ${describe([...out.shape])}`,
      )
    }
    this.#ownsOut = out === undefined
    this.#out = out ?? Tensor.empty([rows, spec.outputDim], { dtype: spec.dtype, stream: place.stream })
    try {
      this.#divide(plan)
    } catch (error) {
      if (this.#ownsOut) this.#out.dispose()
      throw error
    }
  }

  /** Experts that changed slices do so from the next step on. */
  follow(plan: Plan): void {
    this.#divide(plan)
    this.#plan = plan
  }

  /** Queues one step; what it returns is filled when the tenant's stream is there. */
  queue(marks: LaneMarks[] | null, newEvent: NewEvent): Tensor {
    const { stream, laneStream } = this.#place
    if (this.#slices.length === 0 || this.#lanes === null) this.#launch(stream, null)
    else if (laneStream === null) this.#launch(stream, this.#place.enforcement === 'cooperative' ? -1 : 0)
    else {
      const streams = this.#slices.map((s) => laneStream(s))
      fork(stream, streams)
      try {
        // The tenant's own stream comes last: what waits there for tensors of earlier steps must not wait for a lane of this one.
        const order = [...streams.keys()].sort((a, b) => Number(streams[a] === stream) - Number(streams[b] === stream))
        for (const lane of order) this.#timed(streams[lane] ?? stream, lane, marks, newEvent)
      } finally {
        // Also when a launch failed: what was queued before it must not run on beside the next step.
        setTensorStream(this.#out, stream)
        join(stream, streams)
      }
    }
    return this.#out
  }

  /** What each lane has run on since the last call; a single entry, without units, where nothing is divided. */
  async trace(): Promise<LaneUse[]> {
    if (this.#lanes === null || !this.#trace) return []
    const names = this.#slices.map((s) => this.#plan.slices[s]?.name ?? '')
    const units = await this.#lanes.trace(this.#place.stream)
    return names.map((slice, lane) => ({ slice, units: units[lane] ?? [] }))
  }

  /** Streams that it queues on, besides the tenant's. */
  get streams(): readonly Stream[] {
    const { laneStream } = this.#place
    return laneStream === null ? [] : this.#slices.map((s) => laneStream(s))
  }

  dispose(): void {
    this.#lanes?.dispose()
    this.#lanes = null
    if (this.#ownsOut) this.#out.dispose()
  }

  #timed(on: Stream, lane: number, marks: LaneMarks[] | null, newEvent: NewEvent): void {
    const begin = marks && newEvent()
    begin?.record(on)
    this.#launch(on, lane)
    if (begin === null || marks === null) return
    const end = newEvent()
    end.record(on)
    marks.push({ slice: this.#plan.slices[this.#slices[lane] ?? 0]?.name ?? '', begin, end })
  }

  #launch(stream: Stream, lane: number | null): void {
    const { experts, x, routed, inputScale } = this.#work
    // Lanes write rows of their own: none of them has to wait for another, only for the fork.
    setTensorStream(this.#out, stream)
    const scale = inputScale === undefined ? {} : { inputScale }
    const lanes = lane === null || this.#lanes === null ? {} : { lanes: this.#lanes, lane }
    experts.forward(x, routed, { ...scale, ...lanes, stream, out: this.#out })
  }

  /** Puts the experts into lanes: by the table when the lanes stay, else by a new one. */
  #divide(plan: Plan): void {
    const { spread, slice, stream } = this.#place
    const experts = this.#work.experts.spec.numExperts
    let slices: number[]
    let laneOf: number[]
    let shares: number[]
    if (spread) {
      slices = populated(plan)
      laneOf = plan.sliceOf.map((s) => slices.indexOf(s))
      shares = slices.map((s) => plan.slices[s]?.grantedSms ?? 1)
    } else if (slice !== null && (this.#place.enforcement === 'cooperative' || this.#trace)) {
      // All experts in one lane; where it is held by cooperation, a lane without experts has the rest of the blocks.
      const all = plan.slices.reduce((sum, { grantedSms }) => sum + grantedSms, 0)
      const own = plan.slices[slice]?.grantedSms ?? all
      slices = [slice]
      laneOf = new Array<number>(experts).fill(0)
      shares = own < all && this.#place.enforcement === 'cooperative' ? [own, all - own] : [own]
    } else return
    shares = shares.map((n) => Math.max(1, n))
    const before = this.#lanes
    const same = slices.length === this.#slices.length && slices.every((s, lane) => s === this.#slices[lane])
    if (before !== null && same) {
      before.update({ laneOf, shares, stream })
      return
    }
    this.#lanes = new LaneSet({ stream, laneOf, lanes: shares.length, shares, trace: this.#trace })
    this.#slices = slices
    before?.dispose()
  }
}
