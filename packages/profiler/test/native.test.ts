// Counts that a router leaves in a ring, read without waiting: every step in order, what was overwritten counted.
import { DisposedError, resolveDevice, Stream, describe as spell, Tensor } from '@nexus/native'
import { binding, bufferOf, countRingOf, type RawRouterDesc, streamOf } from '@nexus/native/binding'
import { describe, expect, test } from 'vitest'
import { plainRouter } from '../../../kernels/test-js/raw-descriptions.js'
import { ExpertProfiler } from '../src/index.js'
import { CountRing } from '../src/native.js'

const [numExperts, topK] = [4, 2]
const desc: RawRouterDesc = plainRouter(numExperts, topK)

function missing(): string | null {
  try {
    resolveDevice('cuda')
    return null
  } catch (error) {
    return error instanceof Error ? error.message : spell(error)
  }
}
const devices = [
  { device: 'cpu', skip: null },
  { device: 'cuda:0', skip: missing() },
] as const

test.runIf(process.env.NEXUS_REQUIRE_GPU === '1')('there is a GPU, since one is required', () => {
  expect(missing()).toBeNull()
})

describe.each(devices)('CountRing on $device', ({ device, skip }) => {
  describe.skipIf(skip !== null)(`with a device${skip === null ? '' : ` (${skip})`}`, () => {
    /** Routes batches in which expert i % 4 and its neighbour get all tokens. */
    async function route(ring: CountRing, first: number, steps: number): Promise<number[][]> {
      const { routerKernels } = binding()
      const stream = Stream.default(device)
      const expected: number[][] = []
      for (let i = first; i < first + steps; i++) {
        const tokens = 1 + (i % 5)
        const [hot, next] = [i % numExperts, (i + 1) % numExperts]
        const row = Array.from({ length: numExperts }, (_, e) => (e === hot ? 2 : e === next ? 1 : 0))
        const bytes = routerKernels.routeWorkspaceBytes(device === 'cpu' ? -1 : 0, desc, tokens)
        const made = [
          Tensor.from(Array.from({ length: tokens }, () => row).flat(), [tokens, numExperts], { device }),
          Tensor.empty([tokens, topK], { device, dtype: 'i32' }),
          Tensor.empty([tokens, topK], { device }),
          Tensor.empty([numExperts], { device, dtype: 'i32' }),
          Tensor.empty([numExperts + 1], { device, dtype: 'i32' }),
          Tensor.empty([tokens * topK], { device, dtype: 'i32' }),
          Tensor.empty([Math.ceil(bytes / 4)], { device }),
        ]
        const [logits, ids, weights, counts, offsets, order, space] = made.map((tensor) => bufferOf(tensor))
        if (!logits || !ids || !weights || !counts || !offsets || !order || !space)
          throw new Error('a buffer is missing')
        const on = streamOf(stream)
        const handle = countRingOf(ring)
        routerKernels.route(on, desc, logits, null, tokens, ids, weights, counts, offsets, order, space, handle)
        for (const tensor of made) tensor.dispose()
        expected.push(Array.from(row, (value) => (value > 0 ? tokens : 0)))
      }
      await stream.synchronize()
      return expected
    }

    test('every step comes out once, in order, with its tokens and counts', async () => {
      using ring = new CountRing({ device, numExperts, capacity: 8 })
      expect(ring.read()).toEqual({ steps: [], lost: 0 })
      let at = 0
      for (const steps of [3, 1, 8, 0, 5]) {
        const expected = await route(ring, at, steps)
        const read = ring.read()
        expect(read.lost).toBe(0)
        expect(read.steps).toEqual(
          expected.map((counts, i) => ({ step: at + i, tokens: 1 + ((at + i) % 5), counts: Int32Array.from(counts) })),
        )
        expect(ring.read().steps).toEqual([])
        at += steps
      }
      expect(ring.stats()).toEqual({ read: 17, lost: 0 })
    })

    test('steps that were overwritten before they were read are counted, the others are there', async () => {
      using ring = new CountRing({ device, numExperts, capacity: 4 })
      const expected = await route(ring, 0, 11)
      const { steps, lost } = ring.read()
      expect(lost).toBe(7)
      expect(steps.map(({ step }) => step)).toEqual([7, 8, 9, 10])
      expect(steps.map(({ counts }) => [...counts])).toEqual(expected.slice(7))
      await route(ring, 11, 2)
      expect(ring.read()).toMatchObject({ lost: 0, steps: [{ step: 11 }, { step: 12 }] })
      expect(ring.stats()).toEqual({ read: 6, lost: 7 })
    })

    test('a reading in the middle of the work sees whole steps only, and none twice', async () => {
      using ring = new CountRing({ device, numExperts, capacity: 16 })
      const running = route(ring, 0, 400)
      let [seen, last] = [0, -1]
      const look = () => {
        const { steps, lost } = ring.read()
        for (const { step, tokens, counts } of steps) {
          expect(step).toBeGreaterThan(last)
          expect(tokens).toBe(1 + (step % 5))
          expect(counts.reduce((a, b) => a + b)).toBe(tokens * topK)
          last = step
        }
        seen += steps.length + lost
      }
      look()
      await running
      look()
      expect(seen).toBe(400)
    })

    test('drainInto() records the steps into a profiler, with what else is known of them', async () => {
      using ring = new CountRing({ device, numExperts })
      const profiler = new ExpertProfiler({ numExperts })
      const direct = new ExpertProfiler({ numExperts })
      expect(ring.drainInto(profiler)).toBe(0)
      for (const [i, counts] of (await route(ring, 0, 9)).entries()) {
        direct.record({ counts, tokens: 1 + (i % 5), timeMs: i })
      }
      expect(ring.drainInto(profiler, ({ step }) => ({ timeMs: step }))).toBe(9)
      expect(profiler.snapshot()).toEqual(direct.snapshot())
      await route(ring, 9, 1)
      expect(ring.drainInto(profiler, { energyJoules: 2 })).toBe(1)
      expect(profiler.snapshot().steps).toBe(10)
    })

    test('a step that a profiler refuses stays to be read', async () => {
      using ring = new CountRing({ device, numExperts })
      const profiler = new ExpertProfiler({ numExperts })
      await route(ring, 0, 4)
      const measures = ({ step }: { step: number }) => ({ timeMs: step === 2 ? -1 : 1 })
      expect(() => ring.drainInto(profiler, measures)).toThrow(RangeError)
      expect([profiler.snapshot().steps, ring.stats().read]).toEqual([2, 2])
      expect(ring.drainInto(profiler)).toBe(2)
      expect(() => ring.drainInto(new ExpertProfiler({ numExperts: 3 }))).toThrow(
        /^profiler: expected one of 4 experts, got one of 3$/,
      )
      expect(() => ring.drainInto({} as never)).toThrow(/^profiler: expected an ExpertProfiler, got an object$/)
    })

    test('a ring of another number of experts is refused where it would be written', async () => {
      using ring = new CountRing({ device, numExperts: 5 })
      await expect(route(ring, 0, 1)).rejects.toThrow(/^ring: expected a ring of 4 experts, got one of 5$/)
    })

    test('dispose() while steps are queued; use after it throws', async () => {
      const ring = new CountRing({ device, numExperts, capacity: 2 })
      const running = route(ring, 0, 200)
      ring.dispose()
      ring.dispose()
      await running
      expect(ring.disposed).toBe(true)
      expect(() => ring.read()).toThrow(DisposedError)
      expect(() => ring.drainInto(new ExpertProfiler({ numExperts }))).toThrow(DisposedError)
      expect(() => countRingOf(ring)).toThrow(DisposedError)
    })

    test.each<[object | undefined, RegExp]>([
      [undefined, /^CountRing options: expected an object of options, got undefined$/],
      [{}, /^numExperts: expected an integer from 1 to 1024, got undefined$/],
      [{ numExperts: 0 }, /^numExperts: expected an integer from 1 to 1024, got 0$/],
      [{ numExperts: 4, capacity: 0 }, /^capacity: expected an integer from 1 to 65536, got 0$/],
      [{ numExperts: 4, capcity: 1 }, /^CountRing options: unknown option 'capcity'; did you mean 'capacity'\?$/],
    ])('options %j are refused by name', (options, message) => {
      expect(() => new CountRing(options as never)).toThrow(message)
    })
  })
})
