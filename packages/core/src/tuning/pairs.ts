/**
 * Which variants of an MLP's linear layers are worth a step's time together. Their times alone mislead: a step is microseconds faster where both
 * layers run the same kernel, and a variant that wins alone can lose in a step, by what it does to its neighbours (docs/kernels/log.md).
 */
import { type Measured, ranked, scoreOf } from './decide.js'

/** A variant for each linear layer of one MLP, in their order: two of them, or three. */
export type Pair = readonly string[]

export const pairName = (pair: Pair): string => pair.join(' + ')

/** Of each linear layer, so many of the fastest alone are tried for all of them. */
const fastest = 3
const mostPairs = 8

/**
 * The heuristic's pair, the fastest alone, then the same variant for every layer: each that is the heuristic's or among the three fastest of
 * one layer, and a candidate of all. Each once, at most eight, those that are faster alone before the others.
 * @param layers what was measured of each linear layer, the heuristic's variant among it
 */
export function pairsOf(layers: readonly (readonly Measured[])[]): readonly Pair[] {
  const own = layers.map((measured) => nameOf(measured.find(({ heuristic }) => heuristic)))
  const alone = layers.map((measured) => nameOf(ranked(measured)[0]))
  const good = layers.flatMap((measured) => ranked(measured).slice(0, fastest))
  const names = new Set([...own, ...good.map(({ name }) => name)])
  const same = [...names]
    .map((name) => ({ pair: layers.map(() => name), us: sumOf(layers, name) }))
    .filter(({ us }) => Number.isFinite(us))
    .sort((a, b) => a.us - b.us)
  const all = [own, alone, ...same.map(({ pair }) => pair)]
  return all.filter((pair, i) => all.findIndex((other) => pairName(other) === pairName(pair)) === i).slice(0, mostPairs)
}

function nameOf(measured: Measured | undefined): string {
  if (measured === undefined) throw new RangeError("layers: expected the heuristic's variant among what was measured")
  return measured.name
}

/** Microseconds of all layers with one variant; infinite where it is no candidate of one of them. */
function sumOf(layers: readonly (readonly Measured[])[], name: string): number {
  const times = layers.map((measured) => measured.find((m) => m.name === name))
  return times.reduce((sum, m) => sum + (m === undefined ? Number.POSITIVE_INFINITY : scoreOf(m)), 0)
}
