// The example of docs/graphs.md, run as it is printed: the replay has the bits of the eager step.
import { readFileSync } from 'node:fs'
import * as native from '@nexus/native'
import { describe, expect, test } from 'vitest'
import * as routerKernels from '../../router-kernels/src/index.js'

const text = readFileSync(new URL('../../../docs/graphs.md', import.meta.url), 'utf8')
const [, code = ''] = /<!-- example -->\s*```js\n([\s\S]*?)```/.exec(text) ?? []
const imports = [...code.matchAll(/^import \{ ([^}]*) \} from '([^']*)'$/gm)]
const body = code.replaceAll(/^import .*$/gm, '')

const { machine } = native.systemInfo()

async function run(device: string, tail: string): Promise<Record<string, Float32Array>> {
  const modules: Record<string, object> = { '@nexus/native': native, '@nexus/router-kernels': routerKernels }
  const names = imports.flatMap(([, list = '']) => list.split(', '))
  const values = imports.flatMap(([, list = '', from = '']) =>
    list.split(', ').map((name): unknown => Reflect.get(modules[from] ?? {}, name)),
  )
  expect(values.every((value) => value !== undefined)).toBe(true)
  const AsyncFunction = Object.getPrototypeOf(async () => undefined).constructor
  return await new AsyncFunction('device', ...names, `${body}\n${tail}`)(device, ...values)
}

const devices = ['cpu', ...(machine?.cuda.usable ? ['cuda:0'] : [])]

describe('the documented example', () => {
  test.each(devices)('on %s replays what it ran', async (device) => {
    const { eager, replayed, again, expected } = await run(
      device,
      `graph.launch()
       const again = await y.toFloat32Array()
       using2 = router.route(null, logits, { stream })
       const rows2 = experts.forward(x, using2, { stream })
       const y2 = combine(rows2, using2, { stream })
       const expected = await y2.toFloat32Array()
       for (const each of [graph, y2, rows2, using2, y, rows, routed, logits, x, experts, router, stream]) each.dispose()
       return { eager, replayed, again, expected }`.replace('using2 =', 'const using2 ='),
    )
    expect(replayed).toEqual(expected)
    expect(again).toEqual(expected)
    // The tokens were others.
    expect(replayed).not.toEqual(eager)
  })
})
