/** Choosing how tenants share a device: the most work within the bounds, with hysteresis, and plainly said when nothing fits. */
import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { type ArrangementTrial, chooseArrangement } from '../src/arrangement.js'

const trial = (name: string, decodeP99: number, decode: number, prefill: number): ArrangementTrial => ({
  arrangement: { name, kind: 'streams', sms: null },
  tenants: [
    { name: 'decode', p50Us: decodeP99 * 0.9, p99Us: decodeP99, relativeThroughput: decode },
    { name: 'prefill', p50Us: 1, p99Us: 1, relativeThroughput: prefill },
  ],
})

describe('chooseArrangement', () => {
  const turns = trial('alternating', 4900, 0.07, 0.93)
  const streams = trial('streams', 900, 0.5, 0.7)
  const slices = trial('slices', 340, 0.98, 0.55)
  const trials = [turns, streams, slices]

  it('takes the most work when nobody has a bound', () => {
    expect(chooseArrangement(trials).chosen.name).toBe('slices')
  })

  it('leaves out what breaks a bound, however much it does', () => {
    const fast = trial('fast', 1000, 1, 1)
    const choice = chooseArrangement([...trials, fast], { p99BoundUs: { decode: 400 } })
    expect(choice.chosen.name).toBe('slices')
    expect(choice.boundsKept).toBe(true)
    expect(choice.reason).toContain('keep the bounds')
  })

  it('says so when nothing keeps the bounds, and takes what misses by least', () => {
    const choice = chooseArrangement(trials, { p99BoundUs: { decode: 100 } })
    expect(choice).toMatchObject({ boundsKept: false, chosen: { name: 'slices' } })
    expect(choice.reason).toContain('no candidate keeps the bounds')
  })

  it('stays with the current one unless another is better by the hysteresis', () => {
    const near = trial('near', 340, 0.98, 0.56)
    expect(chooseArrangement([slices, near], { current: 'slices' }).chosen.name).toBe('slices')
    expect(chooseArrangement([slices, near], { current: 'slices', hysteresis: 0 }).chosen.name).toBe('near')
    // A current one that breaks a bound has no such right.
    expect(chooseArrangement(trials, { current: 'streams', p99BoundUs: { decode: 400 } }).chosen.name).toBe('slices')
  })

  it('names what is wrong', () => {
    expect(() => chooseArrangement([])).toThrow(/trials: expected at least one/)
    expect(() => chooseArrangement(trials, { p99BoundUs: { nobody: 1 } })).toThrow(/no tenant 'nobody'/)
    expect(() => chooseArrangement([trial('bad', Number.NaN, 1, 1)])).toThrow(/p99Us of decode/)
  })

  it('never takes one that another beats within the bounds', () => {
    const figure = fc.double({ min: 0.01, max: 1, noNaN: true })
    const any = fc.array(fc.tuple(fc.double({ min: 1, max: 1000, noNaN: true }), figure, figure), {
      minLength: 1,
      maxLength: 8,
    })
    fc.assert(
      fc.property(any, fc.double({ min: 1, max: 1000, noNaN: true }), (figures, bound) => {
        const all = figures.map(([p99, d, p], i) => trial(`t${i}`, p99, d, p))
        const { chosen, boundsKept } = chooseArrangement(all, { p99BoundUs: { decode: bound } })
        const [p99 = 0, d = 0, p = 0] = figures[Number(chosen.name.slice(1))] ?? []
        expect(boundsKept).toBe(figures.some(([t]) => t <= bound))
        for (const [t, x, y] of figures) {
          if (boundsKept && t <= bound) expect(x + y).toBeLessThanOrEqual(d + p)
          if (!boundsKept) expect(p99).toBeLessThanOrEqual(t)
        }
      }),
    )
  })
})
