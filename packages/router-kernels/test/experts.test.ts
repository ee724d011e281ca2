import { Tensor } from '@nexus/native'
import { describe, expect, test } from 'vitest'
import {
  type Activation,
  combine,
  type FloatDType,
  GroupedExperts,
  type MlpKind,
  type RoutedTokens,
  Router,
} from '../src/index.js'
import { liveMemory, onEachDevice } from './support/devices.js'
import { mlpOracle } from './support/mlp-oracle.js'
import { normal, relativeError, testSeed, tolerance } from './support/random.js'

const kinds: [MlpKind, Activation][] = [
  ['two-layer', 'relu'],
  ['two-layer', 'gelu'],
  ['two-layer', 'gelu-tanh'],
  ['two-layer', 'silu'],
  ['three-layer', 'relu'],
  ['gated', 'swiglu'],
  ['gated', 'geglu'],
  ['gated', 'geglu-tanh'],
  ['gated', 'reglu'],
  ['gated', 'clamped-swiglu'],
]
const dims = { inputDim: 19, hiddenDim: 13, outputDim: 11 }
const get = (list: ArrayLike<number>, i: number): number => list[i] ?? Number.NaN

onEachDevice(`GroupedExperts and combine (seed ${testSeed})`, (device) => {
  const numExperts = 5
  const topK = 2
  function route(tokens: number, values = normal(9, tokens * numExperts)): RoutedTokens {
    using router = new Router({ numExperts, topK, device })
    using logits = Tensor.from(values, [tokens, numExperts], { device })
    return router.route(null, logits)
  }

  for (const dtype of ['f32', 'bf16', 'f16'] as const satisfies FloatDType[]) {
    test.each(kinds)(
      `%s with %s in ${dtype}: rows and their combination as the oracle says`,
      async (kind, activation) => {
        const seeds = [20, 21, 22].slice(0, kind === 'three-layer' ? 3 : 2)
        const first = kind === 'gated' ? 2 * dims.hiddenDim : dims.hiddenDim
        const shapes =
          kind === 'three-layer'
            ? [
                [first, dims.inputDim],
                [dims.hiddenDim, dims.hiddenDim],
                [dims.outputDim, dims.hiddenDim],
              ]
            : [
                [first, dims.inputDim],
                [dims.outputDim, dims.hiddenDim],
              ]
        const parts = shapes.map(([rows = 0, columns = 0], i) => ({
          shape: [numExperts, rows, columns],
          data: normal(seeds[i] ?? 0, numExperts * rows * columns, 1 / Math.sqrt(columns), dtype),
          bias: normal(30 + i, numExperts * rows),
        }))
        const weights = parts.map((p) => Tensor.from(p.data, p.shape, { dtype, device }))
        const biases = parts.map((p) => Tensor.from(p.bias, p.shape.slice(0, 2), { device }))
        using experts = new GroupedExperts({ kind, activation, numExperts, ...dims, dtype, weights, biases })
        for (const tokens of [0, 1, 3, 33]) {
          const values = normal(40 + tokens, tokens * dims.inputDim, 1, dtype)
          using x = Tensor.from(values, [tokens, dims.inputDim], { dtype, device })
          using routed = route(tokens)
          using rows = experts.forward(x, routed)
          using sum = combine(rows, routed)
          using side = combine(rows, routed, { mode: 'concat' })
          const ids = await routed.expertIds.toArray()
          const w = await routed.weights.toFloat32Array()
          const expected = Array.from({ length: tokens * topK }, (_, slot) => {
            const t = Math.floor(slot / topK)
            const row = values.subarray(t * dims.inputDim, (t + 1) * dims.inputDim)
            return mlpOracle(
              experts.spec,
              parts.map((p) => p.data),
              parts.map((p) => p.bias),
              get(ids, slot),
              row,
            )
          })
          const weighted = expected.map((row, slot) => row.map((v) => v * get(w, slot)))
          const summed = Array.from({ length: tokens * dims.outputDim }, (_, i) => {
            const t = Math.floor(i / dims.outputDim)
            return weighted.slice(t * topK, (t + 1) * topK).reduce((s, row) => s + get(row, i % dims.outputDim), 0)
          })
          expect(relativeError(await rows.toFloat32Array(), expected.flat())).toBeLessThan(tolerance[dtype])
          expect(relativeError(await side.toFloat32Array(), weighted.flat())).toBeLessThan(tolerance[dtype])
          expect(relativeError(await sum.toFloat32Array(), summed)).toBeLessThan(tolerance[dtype])
        }
        for (const tensor of [...weights, ...biases]) tensor.dispose()
      },
    )
  }

  test('all tokens to one expert, the others with none: as that expert alone', async () => {
    const tokens = 17
    const values = Float32Array.from({ length: tokens * numExperts }, (_, i) =>
      i % numExperts === 3 ? 9 : i % numExperts === 1 ? 8 : 0,
    )
    using routed = route(tokens, values)
    expect([...(await routed.counts.toArray())]).toEqual([0, tokens, 0, tokens, 0])
    using experts = GroupedExperts.random({ kind: 'gated', numExperts, ...dims, dtype: 'f32', device, seed: 5 })
    using x = Tensor.randn([tokens, dims.inputDim], { device })
    using rows = experts.forward(x, routed)
    using again = experts.forward(x, routed)
    expect(relativeError(await again.toFloat32Array(), await rows.toFloat32Array())).toBe(0)
    expect((await rows.toFloat32Array()).every(Number.isFinite)).toBe(true)
  })

  test('inputScale scales the input before the first activation', async () => {
    const tokens = 6
    using routed = route(tokens)
    using experts = GroupedExperts.random({ kind: 'gated', numExperts, ...dims, dtype: 'f32', device })
    using x = Tensor.randn([tokens, dims.inputDim], { device })
    using twice = Tensor.from(
      (await x.toFloat32Array()).map((v) => 2 * v),
      [tokens, dims.inputDim],
      { device },
    )
    using scale = Tensor.from(new Float32Array(tokens * topK).fill(2), [tokens, topK], { device })
    using scaled = experts.forward(x, routed, { inputScale: scale })
    using direct = experts.forward(twice, routed)
    expect(relativeError(await scaled.toFloat32Array(), await direct.toFloat32Array())).toBeLessThan(1e-6)
  })

  test('combine: shared rows and their scale, unweighted, into a given tensor', async () => {
    using routed = route(3)
    using rows = Tensor.from(
      Float32Array.from({ length: 12 }, (_, i) => i),
      [6, 2],
      { device },
    )
    using shared = Tensor.from([1, 2, 3, 4, 5, 6], [3, 2], { device })
    using sharedScale = Tensor.from([1, 10, 100], [3], { device })
    using out = Tensor.zeros([3, 2], { device })
    expect(combine(rows, routed, { weighted: false, shared, sharedScale, out })).toBe(out)
    expect([...(await out.toFloat32Array())]).toEqual([3, 6, 40, 52, 518, 620])
  })

  test('random experts: the same bits for a seed, others for another; one variant per linear layer; memory comes back', async () => {
    const before = await liveMemory(device)
    const outputs: Float32Array[] = []
    for (const seed of [1, 1, 2]) {
      using routed = route(4)
      using x = Tensor.randn([4, dims.inputDim], { device })
      using experts = GroupedExperts.random({
        kind: 'three-layer',
        numExperts,
        ...dims,
        dtype: 'f32',
        bias: true,
        device,
        seed,
      })
      expect(experts.variant(8)).toHaveLength(3)
      using rows = experts.forward(x, routed)
      outputs.push(await rows.toFloat32Array())
    }
    expect(outputs[1]).toEqual(outputs[0])
    expect(relativeError(outputs[2] ?? [], outputs[0] ?? [])).toBeGreaterThan(0.1)
    expect(await liveMemory(device)).toEqual(before)
  })
})

describe('GroupedExperts and combine refuse by name', () => {
  const shape = {
    kind: 'gated',
    numExperts: 2,
    inputDim: 4,
    hiddenDim: 3,
    outputDim: 4,
    dtype: 'f32',
    device: 'cpu',
  } as const
  test.each([
    ['an unknown option', { hidden: 3 }, /hidden.*hiddenDim/],
    ['an unknown kind', { kind: 'mlp' }, /kind.*mlp/],
    ["another kind's activation", { activation: 'relu' }, /activation.*relu/],
    ['no hidden units', { hiddenDim: 0 }, /hiddenDim.*0/],
    ['an integer dtype', { dtype: 'i32' }, /dtype.*i32/],
    ['a negative limit', { activation: 'clamped-swiglu', limit: -1 }, /limit.*-1/],
    ['a negative seed', { seed: -1 }, /seed.*-1/],
  ])('%s', (_, options, message) => {
    expect(() => GroupedExperts.random({ ...shape, ...(options as object) })).toThrow(message)
  })

  test('weights, tokens and rows of another shape', () => {
    using w1 = Tensor.zeros([2, 6, 4], { device: 'cpu' })
    using w2 = Tensor.zeros([2, 4, 3], { device: 'cpu' })
    using flat = Tensor.zeros([2, 4], { device: 'cpu' })
    using logits = Tensor.zeros([3, 2], { device: 'cpu' })
    using router = new Router({ numExperts: 2, topK: 1, device: 'cpu' })
    using routed = router.route(null, logits)
    expect(() => new GroupedExperts({ ...shape, weights: [w1] })).toThrow(/weights.*2.*1/)
    expect(() => new GroupedExperts({ ...shape, weights: [w2, w2] })).toThrow(/weights\[0\].*\[2, 6, 4\].*\[2, 4, 3\]/)
    using experts = new GroupedExperts({ ...shape, weights: [w1, w2] })
    expect(() => experts.forward(flat, routed)).toThrow(/x.*\[3, 4\].*\[2, 4\]/)
    expect(() => experts.forward(flat, null as never)).toThrow(/^routed .*null/)
    expect(() => combine(flat, { ...routed, topK: 33 })).toThrow(/^routed\.topK.*33/)
    expect(() => combine(flat, routed)).toThrow(/rows.*\[3, width\]/)
    using rows = Tensor.zeros([3, 4], { device: 'cpu' })
    expect(() => combine(rows, routed, { mode: 'sum' as 'concat' })).toThrow(/mode/)
    expect(() => combine(rows, routed, { mode: 'concat', shared: rows })).toThrow(/shared.*concat/)
    expect(() => combine(rows, routed, { out: flat })).toThrow(/out.*\[3, 4\]/)
    experts.dispose()
    expect(() => experts.forward(rows, routed)).toThrow(expect.objectContaining({ code: 'ERR_NEXUS_DISPOSED' }))
  })
})
