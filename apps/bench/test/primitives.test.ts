// `bench router` and `bench kernels`: results are checked before they are timed, and rates follow from times.
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { type RoutedTokens, systemInfo } from '@nexus/core'
import { afterAll, describe, expect, test } from 'vitest'
import { variantsOf } from '../src/native.js'
import { mark, routeOnce, sumsOf } from '../src/primitives/counters.js'
import { kernelsBench } from '../src/primitives/kernels.js'
import { routerBench } from '../src/primitives/router.js'
import { asCell, routerCalls } from '../src/primitives/router-calls.js'
import { checkRouted } from '../src/primitives/router-check.js'
import { parseShape } from '../src/shapes.js'
import { benchPeers, fakePython } from './fake-peers.js'

const noAddon = 'error' in systemInfo().addon
const scratch = mkdtempSync(join(tmpdir(), 'nexus-bench-primitives-'))
afterAll(() => rmSync(scratch, { recursive: true, force: true }))

describe('counted bytes', () => {
  const csv = [
    '==PROF== Connected to process 1',
    '"ID","Kernel Name","lts__t_sectors_srcunit_tex.sum"',
    '"","","sector"',
    '"0","route_tokens_kernel<4>","1,000"',
    '"1","route_scan_kernel","5"',
    '"2","weighted_sum_kernel","77"',
    '"3","route_small_kernel","2"',
    '"4","weighted_sum_kernel","77"',
  ].join('\n')
  test('are summed up to each mark', () => {
    expect(sumsOf(csv)).toEqual([1005 * 32, 64])
  })
  test('the mark is the name that a kernel has in its source', () => {
    const source = readFileSync(new URL('../../../kernels/src/data/cuda/combine.cu', import.meta.url), 'utf8')
    expect(source).toMatch(new RegExp(`__global__[^;]*?\\b${mark}_kernel\\(`))
  })
  test('of nothing, or in an unknown unit, are refused', () => {
    expect(() => sumsOf('==ERROR== ERR_NVGPUCTRPERM')).toThrow('ncu counted no kernel')
    expect(() => sumsOf(csv.replace('"sector"', '"furlong"'))).toThrow(/furlong/)
  })
})

describe.skipIf(noAddon)('the router on the CPU', () => {
  test('a right routing passes; each part, tampered with, is refused', async () => {
    const { host, calls, dispose } = routerCalls(asCell(16, 3, 9), 'cpu', 1, 1)
    try {
      const [logits] = host
      const routed = calls[0]?.out
      if (!logits || !routed) throw new Error('no call')
      expect(await checkRouted(routed, logits)).toBeLessThan(1e-6)
      const tampered = async (name: keyof RoutedTokens, change: (values: Int32Array | Float32Array) => void) => {
        const tensor = routed[name] as RoutedTokens['order']
        const before = (await tensor.toArray()) as Int32Array
        const after = before.slice()
        change(after)
        await tensor.write(after)
        await expect(checkRouted(routed, logits), String(name)).rejects.toThrow(/the routing is wrong/)
        await tensor.write(before)
      }
      const swap = (values: Int32Array | Float32Array) => {
        const [a = 0, b = 0] = values
        values[0] = b
        values[1] = a
      }
      const add = (values: Int32Array | Float32Array) => {
        values[1] = (values[1] ?? 0) + 1
      }
      await tampered('expertIds', swap)
      await tampered('weights', add)
      await tampered('counts', add)
      await tampered('offsets', add)
      await tampered('order', swap)
      expect(await checkRouted(routed, logits)).toBeLessThan(1e-6)
    } finally {
      dispose()
    }
  })

  test('is timed beside its peers, with the bytes of both ways', async () => {
    const result = await routerBench({
      device: 'cpu',
      routers: [
        { experts: 8, topK: 2 },
        { experts: 64, topK: 8 },
      ],
      tokens: [1, 33],
      peers: true,
      counters: true,
      budgetMs: 5,
      seed: 1,
      python: fakePython(scratch, 'peers', benchPeers),
      onProgress: () => {},
    })
    expect(result.peersError).toBeNull()
    expect(result.countersReason).toBe('the CPU backend counts no bytes')
    expect(result.rows).toHaveLength(4)
    const [, row] = result.rows
    expect(row).toMatchObject({ experts: 8, topK: 2, tokens: 33, aimUs: 6, countedBytes: null })
    expect(row?.bytes).toEqual({ onePass: 33 * 48, separate: 33 * 120 })
    expect(row?.peers).toEqual({ 'torch router': 63 })
    for (const { nexusUs, weightError } of result.rows) {
      expect(nexusUs).toBeGreaterThan(0)
      expect(weightError).toBeLessThan(1e-6)
    }
  })

  test('what a profiler is to run is one call of each, with its mark', async () => {
    await expect(routeOnce([asCell(8, 2, 5), asCell(4, 1, 1)], 1, 'cpu')).resolves.toBeUndefined()
  })
})

describe.skipIf(noAddon)('kernels on the CPU', () => {
  const tiny = parseShape('tiny:64:96:8:2')
  const options = {
    device: 'cpu',
    shapes: [tiny],
    tokens: [1, 16],
    budgetMs: 3,
    seed: 1,
    onProgress: () => {},
  } as const

  test('every phase of a step, with rates that follow from its bytes and products', async () => {
    const { rows, failed, relativeErrors } = await kernelsBench({ ...options, alternatives: false })
    expect(failed).toEqual([])
    expect(relativeErrors.default).toBeLessThan(4e-3)
    expect(rows.map(({ tokens, phase }) => `${tokens} ${phase}`)).toEqual(
      [1, 16].flatMap((n) => ['logits', 'route', 'experts', 'combine'].map((phase) => `${n} ${phase}`)),
    )
    for (const row of rows) {
      expect(row).toMatchObject({ shape: 'tiny', path: 'default', chosen: true })
      expect(row.us).toBeGreaterThan(0)
      if (row.phase !== 'experts') continue
      expect(row.variant).toMatch(/^cpu-.* \+ cpu-/)
      expect(row.teraflopsPerSecond).toBeCloseTo((6 * row.tokens * 2 * 64 * 96) / row.us / 1e6, 9)
    }
  })

  test('a wrong shape is written down, and the next one measured', async () => {
    const wrong = { ...tiny, name: 'wrong', topK: 9 }
    const { rows, failed } = await kernelsBench({ ...options, shapes: [wrong, tiny], tokens: [1], alternatives: false })
    expect(failed).toMatchObject([{ what: 'wrong, 1 tokens', why: expect.stringContaining('topK') }])
    expect(rows).toHaveLength(4)
  })

  test('the linear layers alone by every variant, or why not', async () => {
    const { rows, failed } = await kernelsBench({ ...options, tokens: [16], alternatives: true })
    const named = variantsOf('cpu', { experts: 8, k: 64, n: 192, first: true }, 32)
    const linears = rows.filter(({ phase }) => phase === 'linear1')
    if (named === null) expect(failed.map(({ what }) => what)).toContain('linear layers alone')
    else {
      expect(linears.map(({ variant }) => variant).sort()).toEqual(named.map(({ name }) => name).sort())
      expect(linears.filter(({ chosen }) => chosen)).toHaveLength(1)
    }
    expect(failed.map(({ what }) => what)).toEqual(
      expect.arrayContaining(['NEXUS_CPU_ISA=scalar', 'NEXUS_CPU_ISA=avx2']),
    )
  })

  test('the phases under other switches, in processes of their own', async () => {
    const script = join(scratch, 'again.cjs')
    writeFileSync(
      script,
      `if (process.env.NEXUS_CPU_ISA === 'avx2') { console.error('no such instructions'); process.exit(1) }
      const row = { shape: 'tiny', tokens: 1, path: 'default', chosen: true, us: 7, gigabytesPerSecond: 1, teraflopsPerSecond: 1 }
      const rows = [{ ...row, phase: 'route', variant: '' }, { ...row, phase: 'experts', variant: process.env.NEXUS_CPU_ISA }]
      console.log(JSON.stringify({ rows, failed: [], relativeErrors: { default: 1e-3 }, args: process.argv }))`,
    )
    const result = await kernelsBench({ ...options, tokens: [1], alternatives: true, script })
    expect(result.rows.filter(({ path }) => path !== 'default')).toMatchObject([
      { path: 'NEXUS_CPU_ISA=scalar', phase: 'experts', variant: 'scalar', chosen: false },
    ])
    expect(result.relativeErrors['NEXUS_CPU_ISA=scalar']).toBe(1e-3)
    expect(result.failed).toContainEqual({ what: 'NEXUS_CPU_ISA=avx2', why: 'no such instructions' })
  })
})
