// Kernel variants through the raw addon: what there is, one run of a named one, tables. Wrong arguments are refused by name, and sizes are checked
// against the buffers before anything is queued.
import { describe, expect, it } from 'vitest'
import { binding, bufferOf, nativeVersion, type RawLinearDesc, streamOf } from '../lib/binding-entry.js'
import { Stream, Tensor } from '../lib/index.js'
import { devices } from './devices.js'

const invalid = (message: RegExp) =>
  expect.objectContaining({ code: 'ERR_NEXUS_INVALID_ARGUMENT', message: expect.stringMatching(message) })

const linear: RawLinearDesc = { dtype: 0, experts: 3, k: 16, n: 24, epilogue: 16, limit: 7, alpha: 1 }
const key = { dtype: 0, experts: 3, k: 16, n: 24, gated: true }

it('knows its version', () => {
  expect(nativeVersion()).toMatch(/^\d+\.\d+\.\d+/)
})

describe.each(devices)('kernel variants on $title', ({ name: device, skip }) => {
  describe.skipIf(skip !== null)('with a device', () => {
    const { routerKernels } = binding()
    const index = device === 'cpu' ? -1 : 0

    it('computes one layer by each candidate, with the same values', async () => {
      using stream = Stream.create({ device })
      using input = Tensor.randn([4, 16], { stream, seed: 1 })
      using weight = Tensor.randn([2 * 3, 24, 16], { stream, seed: 2 })
      using offsets = Tensor.from(Int32Array.of(0, 3, 3, 8), [4], { dtype: 'i32', stream })
      using order = Tensor.from(Int32Array.of(1, 4, 7, 0, 2, 3, 5, 6), [8], { dtype: 'i32', stream })
      using output = Tensor.zeros([8, 12], { stream })
      const on = streamOf(stream)
      const run = (variant: string, rows = 8, weightOffset = 3 * 24 * 16, of = linear) =>
        routerKernels.groupedLinear(
          on,
          of,
          rows,
          2,
          true,
          true,
          bufferOf(input),
          bufferOf(weight),
          weightOffset,
          bufferOf(offsets),
          bufferOf(order),
          bufferOf(output),
          variant,
        )
      const candidates = routerKernels.candidates(index, linear, 8)
      expect(candidates.length).toBeGreaterThan(1)
      expect(candidates.filter(({ heuristic }) => heuristic)).toHaveLength(1)
      expect(candidates.filter(({ invariant }) => invariant)).toHaveLength(1)
      let want: Float32Array | null = null
      for (const { name } of candidates) {
        run(name)
        const got = await output.toFloat32Array()
        want ??= got
        for (const [i, value] of want.entries()) expect(got[i]).toBeCloseTo(value, 4)
      }
      const [name = ''] = candidates.map((candidate) => candidate.name)
      expect(() => run('no such variant')).toThrow(invalid(/^variant: expected a candidate .* got 'no such variant'/))
      expect(() => run(name, 10)).toThrow(invalid(/^input: needs /))
      expect(() => run(name, 7)).toThrow(invalid(/^rows: expected a multiple of rowsPerInput/))
      expect(() => run(name, 8, 3 * 24 * 16 + 1)).toThrow(invalid(/^weight: needs /))
      expect(() => run(name, 8, 0, { ...linear, epilogue: 7 })).toThrow(invalid(/^linear\.epilogue: there is no 7/))
      expect(() => run(3 as never)).toThrow(/^variant: expected a string/)
    })

    it('a table is checked as a whole, and one that is refused leaves the one before', () => {
      const device = routerKernels.deviceClass(index)
      expect(device).toMatch(/^(cpu|sm_.*)\/\w+$/)
      const [first, second] = routerKernels.candidates(index, linear, 8).map(({ name }) => name)
      if (first === undefined || second === undefined) throw new Error('expected two candidates')
      const set = (choices: object[] | null, orders: object[] = []) =>
        routerKernels.setVariantTable(device, choices as never, orders as never)
      try {
        set([{ ...key, rows: 8, variants: [second, first] }])
        expect(() => set([{ ...key, rows: 0, variants: [first] }])).toThrow(invalid(/^choices\[0\]\.rows: /))
        expect(() => set([{ ...key, rows: 1, variants: [] }])).toThrow(invalid(/^variants: /))
        expect(() => set([{ ...key, rows: 1, variants: [7] }])).toThrow(
          /^choices\[0\]\.variants\[0\]: expected a string/,
        )
        expect(() => set([], [{ ...key, order: '' }])).toThrow(invalid(/^order: /))
        expect(() => set([{ ...key, experts: 0, rows: 1, variants: [first] }])).toThrow(
          invalid(/^choices\[0\]\.experts: /),
        )
        expect(() => set([null as never])).toThrow(/^choices\[0\]: expected an object/)
        expect(() => routerKernels.setVariantTable('', [], [])).toThrow(invalid(/^device_class: /))
      } finally {
        set(null)
      }
    })
  })
})
