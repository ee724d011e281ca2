/**
 * How the inputs of a recorded trace drift: which images make up each step. Tokens come in requests of 16 images of one class, as tokens of a real batch
 * come in texts, so that steps differ by more than single draws would; a kind of drift moves the mix of classes, or what the images are.
 */
import { uniforms } from '../random.js'
import { classes, type Images } from './digits.js'

/** How the mix moves. */
export type Drift = 'gradual' | 'periodic' | 'bursts' | 'domains' | 'flash-crowd'

/** What one step routes. */
export interface Batch {
  /** An image for each token. */
  readonly images: Int32Array
  /** Turned by a quarter. */
  readonly turned: boolean
}

interface Moment {
  /** Weights of the classes, in any unit. */
  readonly mix: readonly number[]
  readonly turned?: boolean
  /** An image that half of the tokens are. */
  readonly crowd?: number | null
}

interface Random {
  next(): number
  between(from: number, to: number): number
  integer(below: number): number
  exponential(mean: number): number
  /** Weights of the classes that spread as far as 1 : e^3. */
  mix(): number[]
}

type Motion = (step: number) => Moment

const requestTokens = 16

function randomOf(seed: number): Random {
  const next = uniforms(seed)
  return {
    next,
    between: (from, to) => from + (to - from) * next(),
    integer: (below) => Math.floor(next() * below),
    exponential: (mean) => -mean * Math.log(next()),
    mix: () => Array.from({ length: classes }, () => Math.exp(3 * next())),
  }
}

const blend = (a: readonly number[], b: readonly number[], part: number) =>
  a.map((x, c) => x + part * ((b[c] ?? 0) - x))

/** Mixes of one sum: blending two of them is then linear in what is drawn. */
const share = (mix: readonly number[]) => {
  const total = mix.reduce((sum, x) => sum + x, 0)
  return mix.map((x) => x / total)
}

const motions: Record<Drift, { readonly what: string; readonly begin: (random: Random, images: Images) => Motion }> = {
  gradual: {
    what: 'the mix of classes goes in a straight line from one random mix to the next, 192 to 384 steps each',
    begin(random) {
      let [from, to] = [share(random.mix()), share(random.mix())]
      let begin = 0
      let length = Math.round(random.between(192, 384))
      return (step) => {
        if (step >= begin + length) {
          begin += length
          length = Math.round(random.between(192, 384))
          from = to
          to = share(random.mix())
        }
        return { mix: blend(from, to, (step - begin) / length) }
      }
    },
  },
  periodic: {
    what: 'the mix of classes swings like a sine between that of the day and that of the night, with a period of 160 steps',
    begin(random) {
      const [day, night] = [share(random.mix()), share(random.mix())]
      return (step) => ({ mix: blend(day, night, 0.5 + 0.5 * Math.sin((2 * Math.PI * step) / 160)) })
    },
  },
  bursts: {
    what: 'all classes alike, but for bursts: one class makes up two thirds of the requests for 80 steps in the mean, every 240 in the mean',
    begin(random) {
      const even = new Array<number>(classes).fill(1)
      let mix = even
      let until = random.exponential(160)
      return (step) => {
        if (step >= until) {
          const on = mix === even
          const burst = random.integer(classes)
          mix = on ? even.map((x, c) => (c === burst ? 2 * (classes - 1) : x)) : even
          until = step + random.exponential(on ? 80 : 160)
        }
        return { mix }
      }
    },
  },
  domains: {
    what: 'all classes alike; all images are turned by a quarter, or upright again, from one step to the next, every 100 to 300 steps',
    begin(random) {
      const mix = new Array<number>(classes).fill(1)
      let turned = false
      let until = random.between(100, 300)
      return (step) => {
        if (step >= until) {
          turned = !turned
          until = step + random.between(100, 300)
        }
        return { mix, turned }
      }
    },
  },
  'flash-crowd': {
    what: 'one random mix of classes; every 120 steps in the mean half of the tokens are one and the same image, for 2 to 5 steps',
    begin(random, images) {
      const mix = random.mix()
      let begin = random.exponential(120)
      let end = begin + 2 + random.integer(4)
      let image = random.integer(images.count)
      return (step) => {
        if (step >= end) {
          begin = step + random.exponential(120)
          end = begin + 2 + random.integer(4)
          image = random.integer(images.count)
        }
        return { mix, crowd: step < begin ? null : image }
      }
    },
  },
}

export const drifts = Object.keys(motions) as readonly Drift[]

/** A drift in words. */
export const driftText = (drift: Drift): string =>
  `${motions[drift].what}; requests are of ${requestTokens} images of one class, drawn with replacement`

/** The steps of a drift, one after the other; the same arguments give the same steps. */
export function* batches(drift: Drift, images: Images, tokens: number, seed: number): Generator<Batch, never> {
  // Kinds of one seed share nothing, and how the mix moves does not depend on how much is drawn from it.
  const salt = Math.imul(seed + 1, 0x9e3779b1) ^ Math.imul(drifts.indexOf(drift) + 1, 0x85ebca6b)
  const motion = motions[drift].begin(randomOf(salt), images)
  const random = randomOf(salt ^ 0x5bd1e995)
  for (let step = 0; ; step++) {
    const { mix, turned = false, crowd = null } = motion(step)
    const total = mix.reduce((sum, x) => sum + x, 0)
    const chosen = new Int32Array(tokens)
    for (let t = 0; t < tokens; t += requestTokens) {
      let left = random.next() * total
      let digit = 0
      while (digit < classes - 1 && left > (mix[digit] ?? 0)) left -= mix[digit++] ?? 0
      const pool = images.byClass[digit] ?? []
      for (let i = t; i < Math.min(tokens, t + requestTokens); i++) {
        const drawn = pool[random.integer(pool.length)] ?? 0
        chosen[i] = crowd !== null && i % 2 === 0 ? crowd : drawn
      }
    }
    yield { images: chosen, turned }
  }
}
