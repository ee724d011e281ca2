/**
 * Routing traces: how many assignments each expert gets in each step. Synthetic ones have a popularity for each expert (softmax of
 * logits, as a router's is) that moves in one of six ways, with the counts drawn around it: log-normal noise for each expert and step
 * (batches differ in what they are about), then Poisson. Every figure of a family is drawn by the seed from the ranges that stand here.
 */
import { checkInteger, checkNumber, checkOneOf, checkOptions, describe } from '@nexus/native'
import { Random } from './random.js'

/** How the popularity moves. */
export type TraceKind = 'stationary' | 'periodic' | 'gradual' | 'bursts' | 'flash-crowd' | 'regimes'

/** All kinds of synthetic traces. */
export const traceKinds: readonly TraceKind[] = [
  'stationary',
  'periodic',
  'gradual',
  'bursts',
  'flash-crowd',
  'regimes',
]

/** A trace: plain data. */
export interface Trace {
  readonly name: string
  readonly numExperts: number
  /** By step, then by expert. */
  readonly counts: readonly ArrayLike<number>[]
}

/** Options of {@link syntheticTrace}. */
export interface TraceOptions {
  readonly kind: TraceKind
  readonly seed: number
  /** @default 1280 */
  readonly steps?: number
  /** @default 64 */
  readonly numExperts?: number
  /**
   * Mean assignments of a step, over all experts.
   * @default 65536
   */
  readonly assignments?: number
  /**
   * Standard deviation of the logarithm of an expert's count within a step, beyond Poisson.
   * @default 0.1
   */
  readonly noise?: number
}

const optionKeys = ['kind', 'seed', 'steps', 'numExperts', 'assignments', 'noise'] as const

/** Logits of a step, before the next one is asked for. */
type Motion = (step: number) => ArrayLike<number>

const logits = (random: Random, experts: number, sigma: number) =>
  Float64Array.from({ length: experts }, () => sigma * random.normal())

const motions: Record<TraceKind, (random: Random, experts: number) => Motion> = {
  /** The same popularity throughout: standard deviation 0.6 to 1.4. */
  stationary(random, experts) {
    const base = logits(random, experts, random.between(0.6, 1.4))
    return () => base
  },
  /** Each expert swings by 0.6 to 1.2 around its base, all with one period of 96 to 256 steps, each in its own phase. */
  periodic(random, experts) {
    const base = logits(random, experts, random.between(0.4, 1))
    const period = random.between(96, 256)
    const swing = random.between(0.6, 1.2)
    const phases = Float64Array.from({ length: experts }, () => random.between(0, 2 * Math.PI))
    return (step) =>
      base.map((x, e) => x + swing * Math.SQRT2 * Math.sin((2 * Math.PI * step) / period + (phases[e] ?? 0)))
  },
  /** From one random popularity to another in a straight line, 192 to 384 steps each. */
  gradual(random, experts) {
    const sigma = random.between(0.8, 1.4)
    let from = logits(random, experts, sigma)
    let to = logits(random, experts, sigma)
    let begin = 0
    let length = Math.round(random.between(192, 384))
    return (step) => {
      if (step >= begin + length) {
        begin += length
        length = Math.round(random.between(192, 384))
        from = to
        to = logits(random, experts, sigma)
      }
      const part = (step - begin) / length
      return from.map((x, e) => x + part * ((to[e] ?? 0) - x))
    }
  },
  /** A tenth of the experts at a time becomes e^1.5 times as popular: on for 80 steps in the mean, off for 160. */
  bursts(random, experts) {
    const base = logits(random, experts, random.between(0.6, 1.2))
    let raised = new Set<number>()
    let until = random.exponential(160)
    return (step) => {
      if (step >= until) {
        const on = raised.size === 0
        raised = new Set(on ? Array.from({ length: Math.ceil(experts / 10) }, () => random.integer(experts)) : [])
        until = step + random.exponential(on ? 80 : 160)
      }
      return base.map((x, e) => x + (raised.has(e) ? 1.5 : 0))
    }
  },
  /** A steady popularity; every 120 steps in the mean one expert draws about a third of everything, for 2 to 5 steps. */
  'flash-crowd'(random, experts) {
    const base = logits(random, experts, random.between(0.6, 1.4))
    const total = Math.log(base.reduce((sum, x) => sum + Math.exp(x), 0))
    let begin = random.exponential(120)
    let end = begin + 2 + random.integer(4)
    let expert = random.integer(experts)
    return (step) => {
      if (step >= end) {
        begin = step + random.exponential(120)
        end = begin + 2 + random.integer(4)
        expert = random.integer(experts)
      }
      if (step < begin) return base
      return base.map((x, e) => (e === expert ? total + Math.log(random.between(0.4, 0.6)) : x))
    }
  },
  /** Another random popularity every 300 steps in the mean, from one step to the next. */
  regimes(random, experts) {
    const sigma = random.between(0.8, 1.4)
    let base = logits(random, experts, sigma)
    let until = random.exponential(300)
    return (step) => {
      if (step >= until) {
        base = logits(random, experts, sigma)
        until = step + random.exponential(300)
      }
      return base
    }
  },
}

/** A synthetic trace; the same options give the same trace. */
export function syntheticTrace(options: TraceOptions): Trace {
  checkOptions('options', options, optionKeys)
  const kind = checkOneOf('options.kind', options.kind, traceKinds)
  const seed = checkInteger('options.seed', options.seed, 0, 2 ** 32 - 1)
  const steps = checkInteger('options.steps', options.steps ?? 1280, 1)
  const numExperts = checkInteger('options.numExperts', options.numExperts ?? 64, 1, 65536)
  const assignments = checkNumber('options.assignments', options.assignments ?? 65536, 0)
  const noise = checkNumber('options.noise', options.noise ?? 0.1, 0)
  // Kinds of one seed share nothing.
  const random = new Random(Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(traceKinds.indexOf(kind) + 1, 0x85ebca6b))
  const motion = motions[kind](random, numExperts)
  const counts = Array.from({ length: steps }, (_, step) => {
    const popularity = Float64Array.from(motion(step), Math.exp)
    const scale = assignments / popularity.reduce((total, x) => total + x, 0)
    return Int32Array.from(popularity, (x) =>
      random.poisson(x * scale * Math.exp(noise * random.normal() - (noise * noise) / 2)),
    )
  })
  return { name: kind, numExperts, counts }
}

/**
 * A trace of counts that were recorded from a layer.
 * @param counts - by step, then by expert
 * @throws TypeError or RangeError that names the step and the expert
 */
export function recordedTrace(name: string, counts: readonly ArrayLike<number>[]): Trace {
  const numExperts = counts[0]?.length ?? 0
  if (numExperts === 0) throw new RangeError(`counts: expected at least one step of at least one expert`)
  const copy = counts.map((step, t) => {
    if (step.length !== numExperts) {
      throw new RangeError(`counts[${t}]: expected ${numExperts} experts as in step 0, got ${describe(step)}`)
    }
    return Float64Array.from(step, (count, e) => checkInteger(`counts[${t}][${e}]`, count, 0, 2 ** 31 - 1))
  })
  return { name, numExperts, counts: copy }
}
